"""Settings of a recipe: the keys of its YAML and the flags of its command line."""

import dataclasses
import difflib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from rlhf.baselines.table import baseline_of
from rlhf.errors import UserError
from rlhf.runs import keys
from rlhf.runs.ranges import BELOW_ONE, at_least, check_ranges
from rlhf.runs.yaml_keys import load_yaml

DTYPES = ("float32", "bfloat16")  # of weights
FILE_KEYS = ("env", "defaults")  # keys of a YAML file that are not settings


@dataclass
class DataSettings:
    """The rows that are read; see docs/data.md."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, a file (jsonl, json, csv, tsv, conll, parquet, txt; .gz too), or a folder of .jsonl files."
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
        default=False, metadata={"help": "Drop bad rows and count them, instead of stopping."}
    )
    overlap: str = field(
        default="error",
        metadata={
            "help": "Prompts in both train and eval rows: error stops; drop removes them from the train rows."
        },
    )
    good_answers: bool = field(
        default=False,
        metadata={
            "help": "sft: of rated answers learn the good ones: label true, chosen, or rank 0."
        },
    )
    rank_by: str | None = field(
        default=None,
        metadata={
            "help": "Column with a number (helpfulness) by which the answers of a prompt are ranked; higher is better."
        },
    )

    RANGES: ClassVar[dict] = {"dataset_limit": at_least(1)}


def resumes(run) -> bool:
    """True unless the run starts from the beginning."""
    return str(run.resume_from_checkpoint or "false").lower() != "false"


def has_layers_to_compute_again(run) -> bool:
    """False for a run that starts from a model before the Transformer, in a folder."""
    return getattr(run, "from_scratch", False) or baseline_of(run.model_name_or_path) is None


@dataclass
class RunSettings:
    """The time between checkpoints, and what a resumed run accepts."""

    checkpoint_minutes: float | None = field(
        default=None,
        metadata={
            "help": "A checkpoint when so many minutes have passed since the last; 0: never. Default: 10, but with "
            'save_strategy: "no" never.'
        },
    )
    resume_changed: bool = field(
        default=False,
        metadata={
            "help": "Resume with other settings, data or processes than those of the checkpoint; the difference is printed."
        },
    )

    RANGES: ClassVar[dict] = {"checkpoint_minutes": at_least(0)}
    UNUSED: ClassVar[tuple] = (
        keys.Unused(("resume_changed",), "set resume_from_checkpoint too", resumes),
    )


@dataclass
class ModelSettings(RunSettings):
    """The model that is trained, and how much of it."""

    model_name_or_path: str = field(
        default="gpt2", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit on the Hub."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Default: the model's own. Another one must keep its ids, and may add to them, unless from_scratch."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights: float32 or bfloat16. To compute in bf16 with float32 weights: precision."
        },
    )
    precision: str | None = field(
        default=None,
        metadata={
            "help": "Of the computation: fp32; bf16, with float32 weights; auto: what is faster here, timed at the start. "
            "Default: what bf16 and fp16 say; where they are unset, fp32 for ppo, reward, dpo, kto and ilql, else "
            "auto."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention: eager, sdpa, flash_attention_2, flash_attention_3, flex_attention. Default: the fastest."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={
            "help": "With use_peft: store the frozen matrices in 4 bits (NF4). Needs pip install 'rlhf[quant]'."
        },
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "With use_peft: store the frozen matrices in 8 bits."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Variables of the chat template, as {"enable_thinking": false} for Qwen 3. Saved with the tokenizer.'
        },
    )
    use_peft: bool = field(
        default=False,
        metadata={"help": "Train LoRA matrices instead of all weights; merged when saved."},
    )
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale: alpha / r."})

    RANGES: ClassVar[dict] = {"lora_r": at_least(1), "lora_alpha": at_least(1)}
    UNUSED: ClassVar[tuple] = (
        keys.Unused(("lora_r", "lora_alpha"), "set use_peft: true too", lambda run: run.use_peft),
        keys.Unused(
            ("gradient_checkpointing", "activation_checkpointing"),
            "models before the Transformer have no layers to compute again; drop it",
            has_layers_to_compute_again,
            fixed=False,
        ),
    )

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(
                f"dtype={self.dtype!r}: use {' or '.join(DTYPES)}; bf16: true computes in bf16 and keeps float32 weights"
            )
        if self.load_in_4bit and self.load_in_8bit:
            raise UserError("load_in_4bit and load_in_8bit are both true: drop one")
        # Nothing is read yet: a run that cannot begin ends here.
        if self.quantization:
            from rlhf.models.quantized import check_quantization

            check_quantization(self.quantization, use_peft=self.use_peft)

    @property
    def quantization(self) -> str | None:
        """ "4bit", "8bit", or None where the matrices are not packed."""
        if self.load_in_4bit:
            return "4bit"
        return "8bit" if self.load_in_8bit else None

    def load_tokenizer(self):
        """Load the tokenizer that the settings name, with the variables of its chat template."""
        from rlhf.data.templates import set_variables

        tokenizer = self._load_tokenizer()
        if self.chat_template_kwargs:
            set_variables(tokenizer, self.chat_template_kwargs)
        return tokenizer

    def _load_tokenizer(self):
        """The model's own tokenizer, of its revision, unless the settings name another."""
        from rlhf.models.load import check_same_ids, load_tokenizer

        path = self.model_name_or_path
        if not self.tokenizer_name_or_path:
            return load_tokenizer(path, revision=self.model_revision)
        tokenizer = load_tokenizer(self.tokenizer_name_or_path)
        if not getattr(self, "from_scratch", False):
            try:
                own = load_tokenizer(path, revision=self.model_revision)
            except UserError:  # a model without one: that is what the key is for
                return tokenizer
            check_same_ids(tokenizer, own, path)
        return tokenizer

    def load_options(self) -> dict:
        """The options of `models.load` that the settings name."""
        options = {
            "revision": self.model_revision,
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
        }
        if self.quantization:
            options["quantization"] = self.quantization
        return options

    def encoder_options(self) -> dict:
        """The same for `load_encoder`, which packs no matrices."""
        if self.quantization:
            raise UserError(
                f"load_in_{self.quantization} is for language models and their reward models, and this is an encoder: "
                "drop the key"
            )
        return self.load_options()

    def with_lora(self, model, *, task: str):
        """Add LoRA matrices to a model if use_peft is set; task as in `models.lora.add_lora`."""
        if not self.quantization:
            from rlhf.models.quantized import check_packed_here

            check_packed_here(model)
        if not self.use_peft:
            return model
        from rlhf.models.lora import add_lora

        return add_lora(model, task=task, rank=self.lora_r, alpha=self.lora_alpha)


@dataclass
class ScratchSettings:
    """Sizes of a model with random weights, instead of model_name_or_path."""

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

    RANGES: ClassVar[dict] = {
        "hidden_size": at_least(1),
        "layers": at_least(1),
        "heads": at_least(1),
        "context": at_least(1),
        "dropout": BELOW_ONE,
    }
    UNUSED: ClassVar[tuple] = (
        keys.Unused(
            ("model_type", "hidden_size", "layers", "heads", "context", "dropout"),
            "a checkpoint has its own sizes; set from_scratch: true for a new model",
            lambda run: run.from_scratch,
        ),
        keys.Unused(
            ("model_name_or_path", "model_revision"),
            "from_scratch: true starts from random weights, with the tokenizer of tokenizer_name_or_path; drop one",
            lambda run: not run.from_scratch or not run.tokenizer_name_or_path,
        ),
        keys.Unused(
            ("dtype", "load_in_4bit", "load_in_8bit"),
            "a model from scratch has float32 weights; bf16: true computes in bf16",
            lambda run: not run.from_scratch,
        ),
    )

    def sizes(self) -> dict:
        """The fields of `models.scratch.Sizes` by name."""
        names = [f.name for f in dataclasses.fields(ScratchSettings) if f.name != "from_scratch"]
        return {name: getattr(self, name) for name in names}


def parse(classes: list[type], description: str, argv: list[str] | None = None) -> tuple:
    """Make instances of `classes` from `--config FILE.yaml` and flags; flags win.

    Refused with a UserError: unknown keys, keys that the run would pass over (`rlhf.runs.keys`), and numbers out of their
    range (`rlhf.runs.ranges`).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        print(help_text(classes, description))
        raise SystemExit(0)
    names = setting_names(classes)
    path, flags = split_config(argv)
    base, own = read_config_parts(path, names) if path else ({}, {})
    check_flags(flags, names)
    # Before the settings: TrainingArguments may read them.
    set_environment(_environment(base, own))
    given = dict(own)
    sources = dict.fromkeys(own, str(path))
    for name, value in keys.given_flags(flags).items():
        given[name], sources[name] = value, keys.COMMAND_LINE
    keys.refuse(keys.never_read(classes, given), given, sources, but=set())
    settings = _make_settings(classes, base | own, flags)

    unused = keys.unused_keys(settings, given)
    # A flag may take the ground from under a key of the file, as --use_peft false does from lora_r.
    overruled = _overruled(classes, base | own, unused, sources)
    keys.refuse(unused, given, sources, but=overruled)
    # What the shared file gives and this run does not read.
    passed_over = overruled | (keys.unused_keys(settings, base).keys() - given.keys())
    if passed_over:
        content = base | own
        content = {name: value for name, value in content.items() if name not in passed_over}
        settings = _make_settings(classes, content, flags)
    for item in settings:
        check_ranges(item)
    return settings


def _overruled(classes: list[type], content: dict, unused: dict, sources: dict) -> set[str]:
    """Those of the unused keys that the file gives, and that count as long as no flags are given."""
    of_file = {name for name in unused if sources[name] != keys.COMMAND_LINE}
    if not of_file:
        return set()
    try:
        alone = _make_settings(classes, content, [])
    except UserError:  # the file is complete only with the flags
        return set()
    return of_file - keys.unused_keys(alone, content).keys()


def _make_settings(classes: list[type], content: dict, flags: list[str]) -> tuple:
    """Instances of the classes. content: keys of YAML files; the flags win over them."""
    from trl import TrlParser

    parser = TrlParser(classes)
    names = setting_names(classes)
    if "use_cpu" in names:
        import torch

        # Without an accelerator, TrainingArguments refuses bf16 unless it is told to use the CPU.
        parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    values = {name: value for name, value in content.items() if name != "env"}
    _replace_nulls(classes, values)
    parser.set_defaults_with_config(**values)  # flags are parsed later, so they win

    def fail(message):
        raise UserError(f"{message}; --help lists the keys")

    parser.error = fail  # argparse would print its usage and exit
    try:
        instances = parser.parse_args_into_dataclasses(args=flags)
    except UserError:  # a ValueError too
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if "bf16" not in given_names(content, flags):
        for instance in instances:
            if hasattr(instance, "bf16"):
                instance.bf16 = None  # not given: trl would set it; `runs.precision` decides
    return instances


def _replace_nulls(classes: list[type], values: dict) -> None:
    """Let null be an empty list for a key with a list. UserError where a key needs a value."""
    nulls = [name for name, value in values.items() if value is None]
    if not nulls:
        return  # to resolve the types of all keys takes a while
    hints = {}
    for cls in classes:
        hints |= get_type_hints(cls)
    for name in nulls:
        kind = hints[name]
        if kind is Any or type(None) in get_args(kind):
            continue
        if get_origin(kind) is not list:
            raise UserError(f"{name}: null, and this key needs a value: drop it for its default")
        values[name] = []


def parser_actions(classes: list[type]) -> dict:
    """Key -> the argparse action that reads it, which knows its type, choices and number of words."""
    from trl import TrlParser

    return {action.dest: action for action in TrlParser(classes)._actions}


def given_names(content: dict, flags: list[str]) -> set[str]:
    """The keys that a YAML and the command line set."""
    names = set(content)
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].split("=")[0].replace("-", "_")
            names |= {name, name.removeprefix("no_")}
    return names


def setting_names(classes: list[type]) -> list[str]:
    """The keys that the classes know."""
    names = []
    for cls in classes:
        names += [f.name for f in dataclasses.fields(cls) if f.init]
    return names


def split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The path after `--config` or in `--config=PATH`, or None, and the other arguments."""
    paths, others = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            paths.append(next(arguments, ""))
        elif argument.startswith("--config="):
            paths.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    if not paths:
        return None, others
    if not paths[-1]:
        raise UserError("--config needs the path of a YAML file")
    if len(paths) > 1:
        raise UserError(
            f"--config was given {len(paths)} times ({', '.join(paths)}): give one, and put what both share "
            "into the file that its key `defaults` names"
        )
    return paths[0], others


def read_config(path: str | os.PathLike, names: list[str] | None = None) -> dict:
    """Read the keys of a YAML file, on top of those of the file that its key `defaults` names.

    That file is in the same folder. Defaults go one level deep: it has no `defaults` itself, so there are no cycles. The
    key `env` holds environment variables.

    names: the keys that are allowed; None: any.
    """
    base, own = read_config_parts(path, names)
    if not base:
        return own
    return base | own | {"env": _environment(base, own)}


def read_config_parts(path: str | os.PathLike, names: list[str] | None = None) -> tuple[dict, dict]:
    """(keys of the file that `defaults` names, keys of the file itself)."""
    content = _read_yaml(path, names)
    if "defaults" not in content:
        return {}, content
    base = content.pop("defaults")
    if not isinstance(base, str) or not base or Path(base).name != base:
        raise UserError(
            f"{path}: defaults: {base!r} must be the name of a YAML file in the same folder, such as demo.yaml"
        )
    base_path = Path(path).parent / base
    if not base_path.is_file():
        raise UserError(f"{path}: defaults: {base}: {_no_such_config(base_path)}")
    base_content = _read_yaml(base_path, names)
    if "defaults" in base_content:
        raise UserError(
            f"{path}: defaults: {base} has a key `defaults` itself, but they go one level deep: "
            "name a file without that key"
        )
    return base_content, content


def _environment(base: dict, own: dict) -> dict:
    """The environment variables of both files. Other maps are replaced as a whole, these one by one."""
    return (base.get("env") or {}) | (own.get("env") or {})


def _read_yaml(path: str | os.PathLike, names: list[str] | None) -> dict:
    """The keys of one YAML file, each in `names` unless that is None."""
    import yaml

    if not os.path.isfile(path):
        raise UserError(f"{path}: {_no_such_config(Path(path))}")
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    for key in content:
        if names is not None and key not in FILE_KEYS:
            check_key(str(key), names, str(path))
    environment = content.get("env") or {}
    if not isinstance(environment, dict):
        raise UserError(
            f"{path}: env must be a map of environment variables, as in {{NAME: value}}"
        )
    return content


def _no_such_config(path: Path) -> str:
    """The reason of an error, with the configs that the folder does hold."""
    # A folder that does not exist holds none.
    names = sorted(p.name for p in path.parent.glob("*.yaml"))
    if not names:
        return "no such config file"
    return f"no such config file; {path.parent} holds {', '.join(names)}"


def set_environment(variables: dict) -> None:
    """Set environment variables from the key `env`."""
    for name, value in variables.items():
        os.environ[str(name)] = str(value)  # YAML reads `1: a` as a number


def check_flags(flags: list[str], names: list[str]) -> None:
    """Refuse flags that the recipe does not know; `--no_X` switches X off."""
    for flag in flags:
        if not flag.startswith("--"):  # a value
            continue
        name = flag[2:].split("=")[0].replace("-", "_")
        if name not in names:
            name = name.removeprefix("no_")
        check_key(name, names, "the command line")


def check_key(key: str, names: list[str], source: str) -> None:
    """Refuse a key that is not in `names`, with the nearest that is; source: where it was given."""
    if key in names:
        return
    nearest = difflib.get_close_matches(key, names, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise UserError(f"{source}: unknown key {key!r}{suggestion} (--help lists the keys)")


def help_text(classes: list[type], description: str) -> str:
    """The recipe's docstring, then the keys we define. TrainingArguments' hundred keys are named, not repeated."""
    lines = [
        description.strip(),
        "",
        "Keys (YAML `key: value`, or flags `--key value`). In a YAML, `defaults: demo.yaml` names a file of the same",
        "folder whose keys apply first, so that the YAML states only its differences. A key that the run would not read is",
        "refused. It is passed over, and has its default in the record, if it is of the `defaults` file, or if only a flag",
        "makes it idle (lora_r of the YAML with --use_peft false).",
    ]
    for cls in classes:
        lines += ["", f"{cls.__name__}: {(cls.__doc__ or '').strip().splitlines()[0]}"]
        for f in _listed_fields(cls):
            default = "" if f.default in (dataclasses.MISSING, None) else f" [{f.default}]"
            lines.append(f"  --{f.name:<28} {f.metadata.get('help', '')}{default}")
        if inherits_arguments(cls):
            lines.append(
                "  ... and every field of transformers.TrainingArguments with its usual meaning"
            )
    return "\n".join(lines)


def _listed_fields(cls: type) -> list[dataclasses.Field]:
    """Fields that --help lists: a class's own first, then inherited ones unless they are TrainingArguments'."""
    bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
    arguments = inherits_arguments(cls)
    if arguments:
        # Fields that our own bases add to TrainingArguments are listed.
        bases = [base for base in bases if not base.__module__.startswith("rlhf.")]
    inherited: set[str] = set()
    for base in bases:
        inherited |= {f.name for f in dataclasses.fields(base)}
    added = [f for f in dataclasses.fields(cls) if f.name not in inherited]
    if arguments:
        return added
    shared = [f for f in dataclasses.fields(cls) if f.name in inherited]
    return added + shared


def inherits_arguments(cls: type) -> bool:
    """True for transformers.TrainingArguments and its subclasses."""
    return any(base.__name__ == "TrainingArguments" for base in cls.__mro__)


def changed_settings(*objects) -> dict:
    """Every setting that differs from its default, as a YAML would give it. Tokens are secrets and are omitted."""
    changed = {}
    for item in objects:
        for f in dataclasses.fields(item):
            value = getattr(item, f.name, None)
            value = getattr(value, "value", value)  # enums
            if not f.init or f.name.endswith("token") or value == _default(f):
                continue
            # Objects, such as accelerator_config, have no form in a YAML.
            if isinstance(value, str | int | float | bool | list | dict):
                changed[f.name] = value
    return changed


def _default(f: dataclasses.Field):
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default
