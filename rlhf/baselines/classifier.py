"""Classification of a text by a recurrent model or an MLP: the last state goes through a linear layer with softmax.

p(label | w_1 ... w_T) = softmax(W h_T + b), with h_T the state of the top layer after the last token (Tai et al. 2015,
section 4.1: sentiment of sentences by an LSTM; Dai and Le 2015 start such a classifier from a language model). The state of
an MLP knows no more than its window.

The last token is the last one that counts, so that neither side's padding changes the logits. The head is called `score`,
as in transformers' decoders, and reads the state at any token: such a model can also be a reward or value model.
Deviation: the trunk's dropout falls on h_T as well. Tai et al. have it there and on the embeddings.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from rlhf.baselines.language_model import BaselinePreTrainedModel
from rlhf.baselines.mlp import MlpConfig, MlpModel
from rlhf.baselines.recurrent import GruConfig, LstmConfig, RecurrentModel, RnnConfig


class BaselineForSequenceClassification(BaselinePreTrainedModel):
    """A trunk, `model`, and the head, `score`. A subclass names its config in `config_class`, and its `trunk_class`."""

    trunk_class: type = RecurrentModel

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.trunk_class(config)
        # with a bias, which GPT-2's head has not
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.loss_type = "ForSequenceClassification"
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (B, K), and the loss of the config's `problem_type` where there are labels.

        input_ids, attention_mask: (B, L), padded on either side. labels: (B,), or (B, K) of several labels.
        """
        states = self.model(input_ids, attention_mask).last_hidden_state  # (B, L, H)
        rows = torch.arange(len(states), device=states.device)
        logits = self.score(states[rows, last_columns(input_ids, attention_mask)])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def last_columns(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The column (B,) of the last token that counts in each row of input_ids (B, L); 0 in a row of padding alone."""
    rows, width = input_ids.shape
    # not the sum of the mask, which is the column only where the padding is on the right
    columns = torch.arange(width, device=input_ids.device)
    if attention_mask is None:
        return columns[-1].expand(rows)
    return (columns * attention_mask.bool()).argmax(1)


class RnnForSequenceClassification(BaselineForSequenceClassification):
    """A classifier on Elman's network."""

    config_class = RnnConfig


class LstmForSequenceClassification(BaselineForSequenceClassification):
    """A classifier on long short-term memory."""

    config_class = LstmConfig


class GruForSequenceClassification(BaselineForSequenceClassification):
    """A classifier on gated recurrent units."""

    config_class = GruConfig


class MlpForSequenceClassification(BaselineForSequenceClassification):
    """A classifier on the last window of a text."""

    config_class = MlpConfig
    trunk_class = MlpModel
