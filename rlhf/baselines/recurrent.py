r"""Recurrent language models on torch's own layers: a state h_t sums up all tokens so far, x_t = embedding of w_t.

- RNN (Elman 1990): h_t = tanh(W x_t + U h_{t-1} + b)
- LSTM (Hochreiter and Schmidhuber 1997; forget gate f: Gers et al. 2000). With s the logistic function:
  i, f, o = s(W x_t + U h_{t-1} + b), one set of weights each; g = tanh(W_g x_t + U_g h_{t-1} + b_g);
  c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t)
- GRU (Cho et al. 2014): r, z = s(W x_t + U h_{t-1} + b), one set of weights each;
  n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + c_n)); h_t = (1 - z) * n + z * h_{t-1}

Then p(w_{t+1} | w_1 ... w_t) = softmax(V h_t + d). Deviations:
- Layers may be stacked, each reading the states of the one below, with dropout between them (Zaremba et al. 2014).
- torch's GRU applies r after the product with U_n, Cho's before it.
- Gradients go back to the start of a row: a row is as long as `block_size`. Its state starts at 0, or with `carry_state` of
  recipes/pretrain.py at that of the row before (Zaremba et al. 2014).
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig

from rlhf.baselines.language_model import (
    BaselinePreTrainedModel,
    NeuralForCausalLM,
    RowState,
    TrunkOutput,
    check_at_least,
    dropout_between_layers,
    left_aligned,
    read_padded,
    state_tensors,
)


class RecurrentConfig(PreTrainedConfig):
    """Sizes of a recurrent model.

    hidden_size: of the embeddings and of each state. dropout: after the embeddings, between layers and before the output.
    """

    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 1
    dropout: float = 0.0
    initializer_range: float = 0.1


class RnnConfig(RecurrentConfig):
    model_type = "rnn"


class LstmConfig(RecurrentConfig):
    model_type = "lstm"


class GruConfig(RecurrentConfig):
    model_type = "gru"


LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentModel(BaselinePreTrainedModel):
    """The trunk: embeddings and recurrent layers."""

    config_class = RecurrentConfig

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        check_at_least(config, hidden_size=1, num_hidden_layers=1)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = LAYERS[config.model_type](
            config.hidden_size,
            config.hidden_size,
            config.num_hidden_layers,
            dropout=dropout_between_layers(config),
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: RowState | None = None,
        use_cache: bool | None = None,
    ) -> TrunkOutput:
        """The state at each token. input_ids (B, L); attention_mask (B, at least L), padded on either side."""
        rows = left_aligned(input_ids, attention_mask)
        inputs = self.dropout(self.embeddings(rows.align(input_ids)))  # (B, L, H)
        tensors = state_tensors(cache)
        initial = tensors
        # torch's LSTM takes a pair (h, c), the others h alone.
        if tensors is not None and len(tensors) == 1:
            initial = tensors[0]
        if rows.padded:
            states, last = read_padded(self.layers, inputs, rows.lengths, initial)
        else:
            states, last = self.layers(inputs, initial)
        states = rows.restore(self.dropout(states))  # (B, L, H), at the columns of the tokens
        if not use_cache:
            return TrunkOutput(last_hidden_state=states)
        # Each (layers, B, H), so that the rows are in dimension 1.
        if isinstance(last, Tensor):
            last = (last,)
        return TrunkOutput(last_hidden_state=states, cache=RowState(tuple(last), dim=1))


class RnnForCausalLM(NeuralForCausalLM):
    """Elman's network as a language model."""

    config_class = RnnConfig
    trunk_class = RecurrentModel


class LstmForCausalLM(NeuralForCausalLM):
    """A language model of long short-term memory."""

    config_class = LstmConfig
    trunk_class = RecurrentModel


class GruForCausalLM(NeuralForCausalLM):
    """A language model of gated recurrent units."""

    config_class = GruConfig
    trunk_class = RecurrentModel
