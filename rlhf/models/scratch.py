"""Models with random weights, sized for a tokenizer."""

from dataclasses import dataclass

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlhf.baselines.table import BASELINES, register
from rlhf.errors import UserError
from rlhf.models.parts import label_maps, set_causal_loss
from rlhf.task_table import TASKS


@dataclass(frozen=True)
class Sizes:
    """Architecture and sizes of a new model.

    model_type: "gpt2", "bert", or one of `baselines.table`, which has neither heads nor positions.
    hidden_size: width, a multiple of `heads`.
    layers, heads: number of blocks, and of attention heads in each.
    context: positions, the longest sequence in tokens.
    dropout: probability in embeddings, attention and feed-forward layers.
    """

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    context: int
    dropout: float = 0.1

    def config_entries(self) -> dict:
        """The sizes under the names that the architecture's config has for them."""
        if self.model_type == "gpt2":
            return dict(
                n_embd=self.hidden_size,
                n_layer=self.layers,
                n_head=self.heads,
                n_positions=self.context,
                resid_pdrop=self.dropout,
                embd_pdrop=self.dropout,
                attn_pdrop=self.dropout,
            )
        if self.model_type in BASELINES:
            return dict(
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                dropout=self.dropout,
            )
        return dict(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.hidden_size,
            max_position_embeddings=self.context,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )


def new_policy(tokenizer, **sizes) -> PreTrainedModel:
    """Make a GPT-2 class model with random weights; sizes: the fields of `Sizes`."""
    config = _new_config(tokenizer, ("gpt2",), Sizes(**sizes))
    return set_causal_loss(AutoModelForCausalLM.from_config(config))


def new_baseline(
    tokenizer, model_type: str, *, hidden_size: int, layers: int, order: int, dropout: float
) -> PreTrainedModel:
    """Make a language model of `baselines.table` with random weights, or of an n-gram without counts.

    order: tokens of a window and the one after it, of an n-gram or MLP.
    """
    entries = {}
    if BASELINES[model_type].learns == "counts":
        entries["order"] = order
    else:
        entries |= dict(hidden_size=hidden_size, num_hidden_layers=layers, dropout=dropout)
    # Both predict a token from the same number of tokens before it.
    if model_type == "mlp":
        entries["window"] = order - 1
    return AutoModelForCausalLM.from_config(_baseline_config(tokenizer, model_type, entries))


def _baseline_config(tokenizer, model_type: str, entries: dict) -> PretrainedConfig:
    """The config of a model of `baselines.table`, for the vocabulary of a tokenizer."""
    # AutoConfig knows it only from here on
    register(model_type)
    return AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **entries,
    )


def new_encoder(
    tokenizer,
    head: str,
    *,
    labels: list[str] | None = None,
    problem_type: str | None = None,
    **sizes,
) -> PreTrainedModel:
    """Make a BERT class model with random weights and a head, or one of another kind that the tasks with this head allow.

    head: name of an Auto class.
    labels: output i is labels[i].
    sizes: the fields of `Sizes`.
    """
    config = _new_config(tokenizer, architectures_for(head), Sizes(**sizes))
    if labels is not None:
        for name, value in label_maps(labels).items():
            setattr(config, name, value)
    config.problem_type = problem_type
    return getattr(transformers, head).from_config(config)


def architectures_for(head: str) -> tuple[str, ...]:
    """Return the model types that can have this head. Only BERT if no task uses it."""
    for task in TASKS.values():
        if task.head == head:
            return task.model_types
    return ("bert",)


def _new_config(tokenizer, allowed: tuple[str, ...], sizes: Sizes) -> PretrainedConfig:
    if sizes.model_type not in allowed:
        raise UserError(f"model_type={sizes.model_type!r}: use one of {', '.join(allowed)}")
    # They have no heads that would share the width.
    if sizes.model_type in BASELINES:
        return _baseline_config(tokenizer, sizes.model_type, sizes.config_entries())
    width, heads = sizes.hidden_size, sizes.heads
    # Each head takes an equal share of the width.
    if width % heads:
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - heads))
        raise UserError(
            f"hidden_size={width} is not a multiple of heads={heads}: use heads={nearest}"
        )
    # The 0.02 of BERT and GPT-2 is for their width of 768. A BERT of width 128 learned 64 topics to 46 % in five epochs
    # with it, to 84 % in four with this.
    scale = 0.02 * (768 / width) ** 0.5
    return AutoConfig.for_model(
        sizes.model_type,
        vocab_size=len(tokenizer),
        initializer_range=scale,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes.config_entries(),
    )
