"""BASELINES: the models of the ladder that transformers lacks, one row each.

A new rung is one file with a config and its classes, and one row here. The row names them as strings, so that this file
imports neither torch nor transformers: a model's file is imported when a checkpoint or a `model_type` names it.
"""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

CAUSAL = "AutoModelForCausalLM"
SEQ2SEQ = "AutoModelForSeq2SeqLM"
LABELS = "AutoModelForSequenceClassification"


@dataclass(frozen=True)
class Baseline:
    """A rung of the ladder.

    model_type: of its config.json, and of the recipes' key
    year, paper: where it comes from
    module: the file with its classes
    config: name of the config class
    classes: pairs of an Auto class and the model class that it gives, such as (CAUSAL, "LstmForCausalLM"); a class of
        another file is "file:Class"
    learns: "gradient", or "counts" of a model that is counted in one pass and has no gradient
    """

    model_type: str
    year: int
    paper: str
    module: str
    config: str
    classes: tuple[tuple[str, str], ...]
    learns: str = "gradient"

    def is_causal(self) -> bool:
        """True for a language model, which continues a text."""
        return CAUSAL in dict(self.classes)

    def is_classifier(self) -> bool:
        """True for a model that has a head for labels or scores as well."""
        return LABELS in dict(self.classes)

    def model_class(self, name: str) -> type:
        """The class that an entry of `classes` names."""
        # without a colon the first part is empty
        module, _, name = name.rpartition(":")
        return getattr(import_module(module or self.module), name)

    def config_class(self) -> type:
        return getattr(import_module(self.module), self.config)


_ROWS = (
    Baseline(
        "ngram",
        1998,
        "Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling",
        "rlhf.baselines.ngram",
        "NgramConfig",
        ((CAUSAL, "NgramForCausalLM"),),
        learns="counts",
    ),
    Baseline(
        "mlp",
        2003,
        "Bengio et al., A Neural Probabilistic Language Model",
        "rlhf.baselines.mlp",
        "MlpConfig",
        (
            (CAUSAL, "MlpForCausalLM"),
            (LABELS, "rlhf.baselines.classifier:MlpForSequenceClassification"),
        ),
    ),
    Baseline(
        "rnn",
        1990,
        "Elman, Finding Structure in Time",
        "rlhf.baselines.recurrent",
        "RnnConfig",
        (
            (CAUSAL, "RnnForCausalLM"),
            (LABELS, "rlhf.baselines.classifier:RnnForSequenceClassification"),
        ),
    ),
    Baseline(
        "lstm",
        1997,
        "Hochreiter and Schmidhuber, Long Short-Term Memory",
        "rlhf.baselines.recurrent",
        "LstmConfig",
        (
            (CAUSAL, "LstmForCausalLM"),
            (LABELS, "rlhf.baselines.classifier:LstmForSequenceClassification"),
        ),
    ),
    Baseline(
        "gru",
        2014,
        "Cho et al., Learning Phrase Representations using RNN Encoder-Decoder",
        "rlhf.baselines.recurrent",
        "GruConfig",
        (
            (CAUSAL, "GruForCausalLM"),
            (LABELS, "rlhf.baselines.classifier:GruForSequenceClassification"),
        ),
    ),
    Baseline(
        "lstm_seq2seq",
        2014,
        "Sutskever, Vinyals and Le, Sequence to Sequence Learning with Neural Networks",
        "rlhf.baselines.seq2seq",
        "LstmSeq2SeqConfig",
        ((SEQ2SEQ, "LstmSeq2SeqForConditionalGeneration"),),
    ),
)
BASELINES = {row.model_type: row for row in _ROWS}


def register(model_type: str) -> None:
    """Tell transformers' Auto classes about a model of this table. Others, and a second call, change nothing."""
    row = BASELINES.get(model_type)
    if row is None:
        return
    import transformers

    config = row.config_class()
    transformers.AutoConfig.register(model_type, config, exist_ok=True)
    for auto_class, model_class in row.classes:
        getattr(transformers, auto_class).register(
            config, row.model_class(model_class), exist_ok=True
        )


def register_checkpoint(folder: str | Path) -> None:
    """`register` the model that the config.json of a folder names. A folder without one changes nothing."""
    row = baseline_of(folder)
    if row is not None:
        register(row.model_type)


def baseline_of(folder: str | Path) -> Baseline | None:
    """The row of the model in a folder. None for any other model, and where there is no readable config.json."""
    try:
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # loading it says what is wrong
    if not isinstance(config, dict):
        return None
    return BASELINES.get(str(config.get("model_type")))
