"""Settings of a recipe: the keys of its YAML and the flags of its command line."""

import dataclasses
import difflib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.errors import UserError


@dataclass
class DataSettings:
    """Where the rows come from; see docs/data.md."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, a file (jsonl, json, csv, tsv, conll, parquet, txt; .gz too), or a folder of feedback events."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split of a Hub data set to train on."}
    )
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split of a Hub data set to evaluate on."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "File or Hub id with the evaluation rows."}
    )
    eval_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of the prompts held out when there is no evaluation set; 0: none."
        },
    )
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={"help": "Our column = their column: text=document,label=class, or a YAML map."},
    )
    document_separator: str | None = field(
        default=None,
        metadata={
            "help": "Line between the texts of a .txt file: blank, or such as <|endoftext|>. Default: each line is a text."
        },
    )
    dataset_limit: int | None = field(default=None, metadata={"help": "Use the first N rows only."})
    skip_bad: bool = field(
        default=False, metadata={"help": "Leave bad rows out and count them, instead of stopping."}
    )


@dataclass
class ModelSettings:
    """What is trained, and how much of it."""

    model_name_or_path: str = field(
        default="gpt2", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit on the Hub."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Default: the model's own."}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights: float32 or bfloat16. bf16: true keeps float32 weights and computes in bf16."
        },
    )
    use_peft: bool = field(
        default=False,
        metadata={"help": "Train LoRA matrices instead of all weights; merged when saved."},
    )
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale: alpha / r."})


@dataclass
class ScratchSettings:
    """Sizes of a model with random weights, in place of model_name_or_path."""

    from_scratch: bool = field(
        default=False, metadata={"help": "Start from random weights of the sizes below."}
    )
    model_type: str = field(default="gpt2", metadata={"help": "Architecture."})
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    layers: int = field(default=4, metadata={"help": "Depth."})
    heads: int = field(default=4, metadata={"help": "Attention heads."})
    context: int = field(
        default=256, metadata={"help": "Positions: the longest sequence in tokens."}
    )
    dropout: float = field(
        default=0.1,
        metadata={"help": "GPT-2: 0.1; 0 where a small model sees its data once or twice."},
    )

    def sizes(self) -> dict:
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(ScratchSettings)
            if f.name != "from_scratch"
        }


def parse(classes: list[type], description: str, argv: list[str] | None = None) -> tuple:
    """Instances of `classes` from `--config FILE.yaml` and flags, flags winning. Unknown keys are errors."""
    from trl import TrlParser

    argv = list(sys.argv[1:] if argv is None else argv)
    names = [f.name for cls in classes for f in dataclasses.fields(cls) if f.init]
    if "--help" in argv or "-h" in argv:
        print(help_text(classes, description))
        raise SystemExit(0)
    if "--config" in argv:
        place = argv.index("--config") + 1
        if place == len(argv):
            raise UserError("--config needs the path of a YAML file")
        check_config(argv[place], names)
    for flag in argv:
        if flag.startswith("--") and flag != "--config":
            name = flag[2:].split("=")[0].replace("-", "_")
            check_key(
                name.removeprefix("no_") if name not in names else name, names, "the command line"
            )
    parser = TrlParser(classes)
    if "use_cpu" in names:
        import torch

        parser.set_defaults(
            use_cpu=not torch.accelerator.is_available()
        )  # else bf16 is refused on a CPU

    def fail(message):
        raise UserError(f"{message}; --help lists the keys")

    parser.error = fail
    try:
        return parser.parse_args_and_config(argv)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def check_config(path: str, names: list[str]) -> dict:
    """The keys of a YAML file, each known to the recipe."""
    import yaml

    if not os.path.isfile(path):
        folder = Path(path).parent
        there = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        raise UserError(
            f"{path}: no such config file"
            + (f"; {folder} holds {', '.join(there)}" if there else "")
        )
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    for key in content:
        check_key(key, names, path)
    return content


def check_key(key: str, names: list[str], place: str) -> None:
    if key not in names and key != "env":
        near = difflib.get_close_matches(key, names, n=1)
        raise UserError(
            f"{place}: unknown key {key!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + " (--help lists the keys)"
        )


def help_text(classes: list[type], description: str) -> str:
    """The recipe's docstring, then the keys we define; TrainingArguments' hundred keys are named, not repeated."""
    lines = [description.strip(), "", "Keys (YAML `key: value`, or flags `--key value`):"]
    for cls in classes:
        bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
        if inherits_arguments(
            cls
        ):  # what our own bases add to TrainingArguments is listed with their names
            bases = [base for base in bases if not base.__module__.startswith("rlhf.")]
        inherited = {f.name for base in bases for f in dataclasses.fields(base)}
        own = [f for f in dataclasses.fields(cls) if f.name not in inherited]
        own += [
            f
            for f in dataclasses.fields(cls)
            if f.name in inherited and not inherits_arguments(cls)
        ]
        lines += ["", f"{cls.__name__}: {(cls.__doc__ or '').strip().splitlines()[0]}"]
        for f in own:
            default = "" if f.default in (dataclasses.MISSING, None) else f" [{f.default}]"
            lines.append(f"  --{f.name:<28} {f.metadata.get('help', '')}{default}")
        if inherits_arguments(cls):
            lines.append(
                "  ... and every field of transformers.TrainingArguments with its usual meaning"
            )
    return "\n".join(lines)


def inherits_arguments(cls: type) -> bool:
    return any(base.__name__ == "TrainingArguments" for base in cls.__mro__)


def changed_settings(*objects) -> dict:
    """Every setting that differs from its default, as a YAML would give it; tokens are secrets and left out."""
    changed = {}
    for item in objects:
        for f in dataclasses.fields(item):
            default = (
                f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            )
            value = getattr(item, f.name, None)
            value = getattr(value, "value", value)  # enums
            if (
                f.init
                and value != default
                and isinstance(value, str | int | float | bool | list | dict)
            ):
                if not f.name.endswith("token"):
                    changed[f.name] = value
    return changed
