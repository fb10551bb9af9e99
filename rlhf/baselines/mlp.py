"""A neural probabilistic language model (Bengio et al. 2003): an MLP over the embeddings of the last tokens.

x = [C(w_{t-n+1}); ...; C(w_t)];  h = tanh(d + H x);  p(w_{t+1} | w_{t-n+1} ... w_t) = softmax(b + U h)

Deviations:
- The paper's direct connections from x to the output are not here: it reports better generalisation without them.
- With several layers each has a tanh of its own. The paper has one.
- Before the start of a text the window is filled with a vector of zeros.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from rlhf.baselines.language_model import (
    NOTHING,
    BaselinePreTrainedModel,
    NeuralForCausalLM,
    RowState,
    TrunkOutput,
    check_at_least,
    left_aligned,
    past_tokens,
    windows_of,
)


class MlpConfig(PreTrainedConfig):
    """Sizes of the model. window: tokens that it sees, at least 1."""

    model_type = "mlp"
    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 1
    window: int = 4
    dropout: float = 0.0
    initializer_range: float = 0.1


class MlpModel(BaselinePreTrainedModel):
    """The trunk: embeddings of a window, and layers with tanh."""

    config_class = MlpConfig

    def __init__(self, config: MlpConfig):
        super().__init__(config)
        check_at_least(config, hidden_size=1, num_hidden_layers=1, window=1)
        width = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, width)
        sizes = [config.window * width] + [width] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # The sum over a window keeps the scale of its parts, so that tanh is not flat.
            nn.init.normal_(module.weight, std=module.in_features**-0.5)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: RowState | None = None,
        use_cache: bool | None = None,
    ) -> TrunkOutput:
        """The last layer at each token. input_ids (B, L); attention_mask (B, at least L), padded on either side."""
        rows = left_aligned(input_ids, attention_mask)
        past = past_tokens(cache, input_ids, self.config.window - 1)
        windows, last = windows_of(rows.align(input_ids), past, rows.lengths)  # (B, L, W)
        # Token 0 is looked up where there is no token, and its vector replaced by zeros.
        vectors = self.embeddings(windows.clamp(min=0))  # (B, L, W, H)
        vectors = vectors.masked_fill((windows == NOTHING).unsqueeze(-1), 0.0)
        hidden = self.dropout(vectors).flatten(2)  # (B, L, W * H)
        for layer in self.layers:
            hidden = self.dropout(torch.tanh(layer(hidden)))
        state = RowState((last,), dim=0) if use_cache else None
        return TrunkOutput(last_hidden_state=rows.restore(hidden), cache=state)


class MlpForCausalLM(NeuralForCausalLM):
    """Bengio's language model."""

    config_class = MlpConfig
    trunk_class = MlpModel
