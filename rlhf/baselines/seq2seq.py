r"""Encoder and decoder of long short-term memory, with or without attention: a text is read, then another one is written.

The encoder reads the source x_1 ... x_S in both directions and leaves a state at each token, h_j = [forward_j; backward_j].
The decoder starts from its last states and writes y_1 ... y_T, with s_t = LSTM(s_{t-1}, input_t) and

- no attention (Sutskever et al. 2014): input_t = y_{t-1}, and p(y_t | y_<t, x) = softmax(V s_t + d). All that the decoder
  knows of the source is the one state that it starts from.
- additive (Bahdanau et al. 2015, equations 5 and 6): e_tj = v . tanh(W s_{t-1} + U h_j), a_t = softmax(e_t),
  c_t = sum_j a_tj h_j, input_t = [y_{t-1}; c_t]. The context is chosen before the step.
- multiplicative (Luong et al. 2015, section 3.1, "general"): e_tj = s_t . W h_j with input_t = y_{t-1}. The context is
  chosen after the step.

Both end with Luong's equation 5: p(y_t | y_<t, x) = softmax(V tanh(C [c_t; s_t]) + d). a_tj, the share of the source
token j in the target token t, is the alignment: `cross_attentions` of the output. Deviations:
- Sutskever's encoder reads the source backwards. Here it reads both ways, as Bahdanau's does, whatever the attention is,
  so that two models differ in their attention alone.
- Bahdanau has gated units and a maxout output. Luong feeds the last output back into the next input.
- Source and target share their embeddings, as they share their tokenizer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput

from rlhf.baselines.language_model import (
    RowState,
    StatefulModel,
    check_at_least,
    dropout_between_layers,
    left_aligned,
    read_padded,
    state_tensors,
)
from rlhf.errors import UserError

IGNORED = -100  # label of a token that is not learned, as in transformers


class LstmSeq2SeqConfig(PreTrainedConfig):
    """Sizes, and the attention.

    hidden_size: of the embeddings and of each state; even, because each direction of the encoder has a half.
    num_hidden_layers: of the encoder, and of the decoder.
    dropout: after the embeddings, between layers and before the output.
    attention: None, "additive" or "multiplicative".
    """

    model_type = "lstm_seq2seq"
    keys_to_ignore_at_inference = ["cache", "cross_attentions", "encoder_last_hidden_state"]

    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 1
    dropout: float = 0.0
    attention: str | None = None
    initializer_range: float = 0.1
    is_encoder_decoder: bool = True
    decoder_start_token_id: int | None = None


@dataclass
class EncoderOutput(ModelOutput):
    """last_hidden_state: (B, S, H). hidden, cell: (B, layers, H), the states after the whole source."""

    last_hidden_state: Tensor | None = None
    hidden: Tensor | None = None
    cell: Tensor | None = None


class Encoder(nn.Module):
    """Embeddings, and a bidirectional LSTM whose directions have half of the width each."""

    main_input_name = "input_ids"  # read by transformers' generate

    def __init__(self, config: LstmSeq2SeqConfig):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.LSTM(
            config.hidden_size,
            config.hidden_size // 2,
            config.num_hidden_layers,
            dropout=dropout_between_layers(config),
            bidirectional=True,
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_):
        """Read sources (B, S), padded on either side; each row has at least one token that counts."""
        rows = left_aligned(input_ids, attention_mask)
        inputs = self.dropout(self.embeddings(rows.align(input_ids)))  # (B, S, H)
        # Packed, so that the backward direction begins at the last token of each row and not at padding.
        states, (hidden, cell) = read_padded(self.layers, inputs, rows.lengths)
        return EncoderOutput(
            last_hidden_state=rows.restore(self.dropout(states)),
            hidden=_joined_directions(hidden),
            cell=_joined_directions(cell),
        )


def _joined_directions(states: Tensor) -> Tensor:
    """(2 * layers, B, H / 2), the two directions of a layer one after the other -> (B, layers, H)."""
    forward, backward = states[0::2], states[1::2]
    return torch.cat([forward, backward], dim=-1).transpose(0, 1).contiguous()


class AdditiveScores(nn.Module):
    """e_tj = v . tanh(W s_t + U h_j) (Bahdanau et al. 2015, section A.1.2)."""

    def __init__(self, size: int):
        super().__init__()
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size)
        self.energy = nn.Linear(size, 1, bias=False)

    def forward(self, states: Tensor, keys: Tensor) -> Tensor:
        """States (B, T, H) and keys U h_j (B, S, H), which every step shares -> scores (B, T, S)."""
        hidden = self.query(states).unsqueeze(2) + keys.unsqueeze(1)  # (B, T, S, H)
        return self.energy(hidden.tanh()).squeeze(-1)


class MultiplicativeScores(nn.Module):
    """e_tj = s_t . W h_j (Luong et al. 2015, equation 8, "general")."""

    def __init__(self, size: int):
        super().__init__()
        self.key = nn.Linear(size, size, bias=False)

    def forward(self, states: Tensor, keys: Tensor) -> Tensor:
        """States (B, T, H) and keys W h_j (B, S, H) -> scores (B, T, S)."""
        return states @ keys.transpose(1, 2)


SCORES = {"additive": AdditiveScores, "multiplicative": MultiplicativeScores}


def alignment(scores: Tensor, mask: Tensor) -> Tensor:
    """a_tj = softmax of the scores (B, T, S) over the source tokens that count, mask (B, S). Each row sums to 1."""
    # Not -inf: a source of padding alone would give NaN.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask.unsqueeze(1), lowest).softmax(dim=-1)


class Decoder(nn.Module):
    """The layers that write, and the attention."""

    def __init__(self, config: LstmSeq2SeqConfig):
        super().__init__()
        size = config.hidden_size
        self.chooses_before = config.attention == "additive"
        self.layers = nn.LSTM(
            2 * size if self.chooses_before else size,
            size,
            config.num_hidden_layers,
            dropout=dropout_between_layers(config),
            batch_first=True,
        )
        self.scores = self.combine = None
        if config.attention is not None:
            self.scores = SCORES[config.attention](size)
            self.combine = nn.Linear(2 * size, size)

    def forward(self, inputs: Tensor, memory: Tensor, mask: Tensor, state: tuple[Tensor, ...]):
        """Write some tokens.

        inputs (B, T, H): embeddings of y_{t-1}. memory (B, S, H), mask (B, S): of the source. state: hidden, cell.
        Returns outputs (B, T, H), the alignment (B, T, S) or None, and the next state.
        """
        if self.scores is None:
            outputs, state = self.layers(inputs, state)
            return outputs, None, state
        if self.chooses_before:
            outputs, contexts, weights, state = self._write_one_by_one(inputs, memory, mask, state)
        else:
            outputs, state = self.layers(inputs, state)
            weights = alignment(self.scores(outputs, self.scores.key(memory)), mask)
            contexts = weights @ memory
        outputs = self.combine(torch.cat([contexts, outputs], dim=-1)).tanh()
        return outputs, weights, state

    def _write_one_by_one(self, inputs: Tensor, memory: Tensor, mask: Tensor, state):
        """Each context depends on the state before it, so that the steps cannot run at once."""
        # U h_j is the same at every step (appendix A.2.2).
        keys, steps = self.scores.key(memory), []
        for t in range(inputs.shape[1]):
            top = state[0][-1].unsqueeze(1)  # (B, 1, H)
            weights = alignment(self.scores(top, keys), mask)  # (B, 1, S)
            context = weights @ memory
            output, state = self.layers(torch.cat([inputs[:, t : t + 1], context], dim=-1), state)
            steps.append((output, context, weights))
        outputs, contexts, weights = (torch.cat(parts, dim=1) for parts in zip(*steps))
        return outputs, contexts, weights, state


class LstmSeq2SeqForConditionalGeneration(StatefulModel):
    """Encoder, decoder and output layer. transformers' own `generate` gives greedy and beam search, and sampling."""

    config_class = LstmSeq2SeqConfig

    def __init__(self, config: LstmSeq2SeqConfig):
        super().__init__(config)
        check_at_least(config, hidden_size=2, num_hidden_layers=1)
        if config.hidden_size % 2:
            raise UserError(
                f"{config.model_type}: hidden_size={config.hidden_size} must be even: each direction has a half"
            )
        if config.attention is not None and config.attention not in SCORES:
            raise UserError(
                f"{config.model_type}: attention={config.attention!r}: use null, {' or '.join(SCORES)}"
            )
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: EncoderOutput | None = None,
        cache: RowState | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Logits of the next target tokens.

        input_ids, attention_mask: (B, S), the source; or encoder_outputs, where it was read before.
        decoder_input_ids: (B, T), the target so far. Default: labels (B, T), one to the right (teacher forcing).
        cache: the state after the target tokens before these.
        The output's loss is in mean nats per target token. Its cross_attentions is one (B, 1, T, S), the alignment as a
        layer with one head has it, where output_attentions asks for it.
        """
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        memory = encoder_outputs.last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones(memory.shape[:2], device=memory.device)
        state = state_tensors(cache)
        if state is None:
            # torch's layers have the batch in the second dimension.
            first = (encoder_outputs.hidden, encoder_outputs.cell)
            state = tuple(tensor.transpose(0, 1).contiguous() for tensor in first)

        inputs = self.dropout(self.encoder.embeddings(decoder_input_ids))  # (B, T, H)
        outputs, weights, state = self.decoder(inputs, memory, attention_mask.bool(), state)
        logits = self.lm_head(self.dropout(outputs))
        output = Seq2SeqLMOutput(
            loss=target_loss(logits, labels, kwargs.get("num_items_in_batch")),
            logits=logits,
            encoder_last_hidden_state=memory,
        )
        if use_cache:
            output.cache = RowState(tuple(state), dim=1)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and weights is not None:
            output.cross_attentions = (weights.unsqueeze(1),)
        return output

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (B, T) one to the right, after the token that a target starts from."""
        start = self.config.decoder_start_token_id
        if start is None:
            raise ValueError("config.decoder_start_token_id is not set")
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = start
        # Nobody reads what follows a padded label, and any token will do.
        return shifted.masked_fill(shifted == IGNORED, start)

    # ---- transformers' generate ----

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, cache=None, attention_mask=None, encoder_outputs=None, **kwargs
    ) -> dict:
        """The inputs of one step. input_ids: the target so far, of which the state holds all but the newest token."""
        if cache is not None:
            input_ids = input_ids[:, -1:]
        return {
            "decoder_input_ids": input_ids,
            "attention_mask": attention_mask,
            "encoder_outputs": encoder_outputs,
            "cache": cache,
            "use_cache": kwargs.get("use_cache", True),
            "output_attentions": kwargs.get("output_attentions"),
        }


def target_loss(logits: Tensor, labels: Tensor | None, count=None) -> Tensor | None:
    """Mean nats per target token; None without labels.

    logits (B, T, V), labels (B, T), which are not shifted here. count: tokens to divide by; None: those of the batch.
    """
    if labels is None:
        return None
    total = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    if count is None:
        count = (labels != IGNORED).sum()
    return total / count
