"""`python -m rlhf.commands.forms`: the keys of every recipe, and checks of settings, for a program that asks.

It reads one JSON object per line and answers each with one:

    {"ask": "forms"}                                   -> {"forms": {"sft": {"summary", "keys", "configs"}, ...}}
    {"ask": "check", "recipe": "sft", "argv": [...]}   -> {"error": "..." or null}

A check may have `coming`: folders that runs in line will make, which need not be there yet.

The app starts it, so that the recipes and their trainers are imported in a process of their own. It is not a command of
`rlhf`: a person has `rlhf RECIPE --help`.
"""

import contextlib
import dataclasses
import enum
import io
import json
import os
import sys
import typing
import warnings
from importlib import import_module

from transformers import SchedulerType

from rlhf.algorithms import ALGORITHMS
from rlhf.algorithms.preference import PAIR_LOSSES
from rlhf.commands.configs import find_configs
from rlhf.commands.recipes import find_scripts, with_config_path
from rlhf.errors import UserError
from rlhf.runs.inputs import MODEL_KEYS, check_inputs
from rlhf.runs.keys import PUSH, default_values, never_read, rules_of
from rlhf.runs.ranges import ranges_of
from rlhf.runs.settings import (
    DTYPES,
    inherits_arguments,
    parse,
    parser_actions,
    read_config,
)

# Texts that a key takes, where its type does not say so.
TEXTS = {
    "algorithm": tuple(ALGORITHMS),
    "dtype": DTYPES,
    "precision": ("fp32", "bf16", "auto"),
    "overlap": ("error", "drop"),
    "architecture": ("skipgram", "cbow"),
    "loss_type": tuple(PAIR_LOSSES),
    "objective": ("causal", "masked", "masked_nsp"),
    "lr_scheduler_type": tuple(kind.value for kind in SchedulerType),
    "eval_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch"),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
}  # fmt: skip


def main() -> int:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not break the answers
    warnings.filterwarnings("ignore")
    for line in sys.stdin:
        answer = in_a_child(json.loads(line))
        answers.write(f"{answer}\n")
        answers.flush()
    return 0


def in_a_child(request: dict) -> str:
    """The answer to a request as JSON, computed in a fork: settings set environment variables, which must not stay.

    A fork also has the imports of this process. The first request makes them, for all that follow.
    """
    recipes_with_classes()
    if not hasattr(os, "fork"):
        return json.dumps(answer_of(request))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(answer_of(request)))
        os._exit(0)
    # Else the pipe would not end with the child.
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text or json.dumps({"error": "the check of the settings has ended without an answer"})


def answer_of(request: dict) -> dict:
    """The answer to one request."""
    try:
        if request["ask"] == "forms":
            return {"forms": describe_recipes()}
        coming = request.get("coming", [])
        return {"error": problem(request["recipe"], request["argv"], coming)}
    except Exception as error:  # whoever asks must hear of it, and not wait
        return {"error": f"{type(error).__name__}: {error}"}


# ---- keys ------------------------------------------------------------------------------------------------------------

_classes: dict[str, list[type]] = {}


def recipes_with_classes() -> dict[str, list[type]]:
    """Recipe -> the dataclasses of its settings. Imports every recipe once."""
    if not _classes:
        for name, script in find_scripts().items():
            if script.is_recipe:
                hints = typing.get_type_hints(import_module(f"rlhf.recipes.{name}").main)
                hints.pop("return", None)
                _classes[name] = list(hints.values())
    return _classes


def describe_recipes() -> dict[str, dict]:
    """Every recipe with its keys, its configs."""
    scripts = find_scripts()
    forms = {}
    for name, classes in recipes_with_classes().items():
        forms[name] = {
            "summary": scripts[name].summary,
            "keys": describe_keys(classes),
            "configs": describe_configs(name),
        }
    return forms


def describe_configs(recipe: str) -> list[dict]:
    """The YAMLs of a recipe: name, purpose (their first line), and the keys that they set."""
    configs = []
    for name, path in find_configs(recipe).items():
        first_line = path.read_text(encoding="utf-8").partition("\n")[0]
        values = read_config(path)
        values.pop("env", None)  # not a key of the form
        entry = {
            "name": name.partition("/")[2],
            "purpose": first_line.lstrip("# "),
            "values": values,
        }
        configs.append(entry)
    return configs


def describe_keys(classes: list[type]) -> list[dict]:
    """The keys that a run can read, in the order of `--help`.

    Of each: name, group (what its class is about), kind (text, int, float, bool, list, map), choices, default, help
    and range. The parser itself says what it takes.
    """
    actions = parser_actions(classes)
    keys = []
    for cls in classes:
        ranges = ranges_of(cls)
        unread = keys_never_read(cls)
        types = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.init and f.name in actions and f.name not in unread:
                key = {"name": f.name, "group": group_of(cls, f.name)}
                key["range"] = str(ranges.get(f.name, ""))
                keys.append(key | facts_of(f, types[f.name], actions[f.name]))
    return keys


def keys_never_read(cls: type) -> set[str]:
    """The keys that no run reads: a form does not offer them."""
    given = dict.fromkeys(default_values(cls), "not a default")
    names = set(never_read([cls], given)) | set(PUSH)  # a push is asked for in the Share tab
    # Of these one value is allowed, which runs have anyway.
    for rule in rules_of([cls]):
        if rule.fixed is not None and rule.used.__name__ == "never":
            names |= set(rule.keys)
    return names


def group_of(cls: type, name: str) -> str:
    """The first line of the docstring of the class that brings a key; "" for those of TrainingArguments."""
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and name in base.__annotations__:
            if inherits_arguments(base) and not base.__module__.startswith(("rlhf.", "recipes.")):
                return ""
            return (base.__doc__ or "").strip().partition("\n")[0]
    return ""


def facts_of(f: dataclasses.Field, annotation, action) -> dict:
    """Kind, choices, default and help of a key."""
    default = action.default
    if f.name == "use_cpu":
        default = None  # the recipe looks which devices there are
    default = getattr(default, "value", default)  # enums
    if not isinstance(default, str | int | float | bool | list | dict):
        default = None
    types = parts_of(annotation)
    # The parser knows the choices of literals; enums and texts are known elsewhere.
    choices = list(action.choices or TEXTS.get(f.name, ()))
    for part in types:
        if isinstance(part, type) and issubclass(part, enum.Enum):
            choices = list(part)
    return {
        "kind": kind_of(types, action),
        "choices": [str(getattr(choice, "value", choice)) for choice in choices],
        "default": default,
        "help": str(f.metadata.get("help") or action.help or "").replace("%%", "%"),
    }


def parts_of(annotation) -> tuple:
    """The types of a union, or the type itself."""
    return typing.get_args(annotation) or (annotation,)


def kind_of(types: tuple, action) -> str:
    """The kind of a key's value: text, int, float, bool, list or map."""
    # The parser takes several words, whatever the annotation says.
    if action.nargs in ("+", "*"):
        return "list"
    names = {getattr(part, "__name__", str(part)) for part in types} - {"NoneType"}
    if names == {"bool"}:
        return "bool"
    if names == {"int"}:
        return "int"
    # A whole number fits here too, as in `warmup_steps: 4`.
    if names <= {"int", "float"}:
        return "float"
    if "dict" in names and "str" not in names:
        return "map"
    return "text"


# ---- checks ----------------------------------------------------------------------------------------------------------


def problem(recipe: str, argv: list[str], coming: list[str]) -> str | None:
    """The reason why the recipe would refuse these arguments, or the files that they name; None where it takes them."""
    classes = recipes_with_classes()
    if recipe not in classes:
        return f"no recipe {recipe!r}"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            settings = parse(classes[recipe], "", with_config_path(recipe, argv))
        check_inputs(without(settings[0], coming))
    except UserError as error:
        return str(error)
    except SystemExit:  # --help among the arguments
        return "these arguments do not start a run"
    return None


def without(settings, coming: list[str]):
    """The settings without the models that are still to come."""
    for key in MODEL_KEYS:
        value = getattr(settings, key, None)
        if isinstance(value, list):
            setattr(settings, key, [item for item in value if item not in coming])
        elif value in coming:
            setattr(settings, key, None)
    return settings


if __name__ == "__main__":
    sys.exit(main())
