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


@dataclass(frozen=True)
class Baseline:
    """A rung of the ladder.

    model_type: of its config.json, and of the recipes' key
    year, paper: where it comes from
    module: the file with its classes
    config: name of the config class
    classes: pairs of an Auto class and the model class that it gives, such as (CAUSAL, "LstmForCausalLM")
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
        ((CAUSAL, "MlpForCausalLM"),),
    ),
    Baseline(
        "rnn",
        1990,
        "Elman, Finding Structure in Time",
        "rlhf.baselines.recurrent",
        "RnnConfig",
        ((CAUSAL, "RnnForCausalLM"),),
    ),
    Baseline(
        "lstm",
        1997,
        "Hochreiter and Schmidhuber, Long Short-Term Memory",
        "rlhf.baselines.recurrent",
        "LstmConfig",
        ((CAUSAL, "LstmForCausalLM"),),
    ),
    Baseline(
        "gru",
        2014,
        "Cho et al., Learning Phrase Representations using RNN Encoder-Decoder",
        "rlhf.baselines.recurrent",
        "GruConfig",
        ((CAUSAL, "GruForCausalLM"),),
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

    module = import_module(row.module)
    config = row.config_class()
    transformers.AutoConfig.register(model_type, config, exist_ok=True)
    for auto_class, model_class in row.classes:
        getattr(transformers, auto_class).register(
            config, getattr(module, model_class), exist_ok=True
        )


def register_checkpoint(folder: str | Path) -> None:
    """`register` the model that the config.json of a folder names. A folder without one changes nothing."""
    try:
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # loading it says what is wrong
    if isinstance(config, dict):
        register(str(config.get("model_type")))
