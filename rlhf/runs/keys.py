"""Keys that a run would pass over in silence, although the user gave them: each is refused, with what to use instead.

A dataclass of settings lists them in its class attribute UNUSED. A key counts as given when the YAML file itself or a flag
gives it a value other than its default. A key of the file that `defaults` names may not apply to every file that starts
from it, so there it goes back to its default. So does a key of the file that only a flag makes idle.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace

from rlhf.errors import UserError

# Keys whose values are files, folders, or ids of the Hub.
DATA_KEYS = (
    "dataset_name",
    "eval_dataset_name",
    "pretraining_dataset",
    "ptx_dataset_name",
    "demonstrations",
    "analogies",
    "similarity_pairs",
)
MODEL_KEYS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "ref_model",
    "reward_model_path",
    "watch_reward_model_path",
    "value_model",
    "compare_tokenizers",
    "embeddings_from",
)
ROLES = ("reward_model", "shared")  # values of value_model that are not paths

COMMAND_LINE = "the command line"


def never(run) -> bool:
    """No setting makes the key count."""
    return False


@dataclass(frozen=True)
class Unused:
    """Keys that a run does not read.

    keys: names of settings.
    reason: why not, and what to use.
    used: called with all settings of the run as attributes. True where the run does read the keys.
    fixed: the only value that a run can have, whatever the default is.
    """

    keys: tuple[str, ...]
    reason: str
    used: Callable[[SimpleNamespace], bool] = never
    fixed: object = None

    def allows(self, value, default) -> bool:
        """True for a given value that asks for nothing else than what the run does."""
        if self.fixed is not None:
            return same(value, self.fixed)
        return same(value, default)


def same(given, value) -> bool:
    """True if a value of a YAML file or of the command line, where all is text, means `value`."""
    value = getattr(value, "value", value)  # enums
    if given is None or str(given).lower() in ("none", "null"):
        return value is None or str(value).lower() == "none"  # report_to
    try:
        return float(given) == float(value)
    except (TypeError, ValueError):  # not two numbers
        return str(given).lower() == str(value).lower()


def given_flags(flags: list[str]) -> dict:
    """The keys of `--key value`, `--key=value`, `--key` and `--no_key`, with their values."""
    given: dict[str, object] = {}
    name = ""
    for flag in flags:
        if not flag.startswith("--"):
            # Several values become one text, which equals none of the defaults.
            given[name] = flag if given.get(name) is True else f"{given[name]} {flag}"
            continue
        name, has_value, value = flag[2:].partition("=")
        name = name.replace("-", "_")
        given[name] = value if has_value else True
        if name.startswith("no_"):
            given[name.removeprefix("no_")] = False
    return given


def unused_keys(settings: tuple, given: dict) -> dict[str, str]:
    """key -> reason, of the given keys that the run of these settings would pass over."""
    run = SimpleNamespace()
    defaults = {}
    for item in settings:
        run.__dict__.update(vars(item))
        defaults |= default_values(item)
    reasons: dict[str, str] = {}
    for rule in rules_of(map(type, settings)):
        for key in rule.keys:
            is_ours = key in given and key in defaults
            if is_ours and not rule.allows(given[key], defaults[key]) and not rule.used(run):
                reasons[key] = rule.reason
    return reasons


def never_read(classes: Iterable[type], given: dict) -> dict[str, str]:
    """key -> reason, of the given keys that no run of these classes of settings reads.

    Known before the settings are made: `deepspeed`, for one, makes TrainingArguments look for a package.
    """
    defaults = {}
    for cls in classes:
        defaults |= default_values(cls)
    reasons: dict[str, str] = {}
    for rule in rules_of(classes):
        for key in rule.keys:
            is_ours = rule.used is never and key in given and key in defaults
            if is_ours and not rule.allows(given[key], defaults[key]):
                reasons[key] = rule.reason
    return reasons


def rules_of(classes: Iterable[type]) -> list[Unused]:
    """The rules in UNUSED of the classes of settings, and those of all recipes."""
    rules = list(ARGUMENTS)
    for settings in classes:
        for cls in settings.__mro__:
            rules += cls.__dict__.get("UNUSED", ())
    return rules


def default_values(item) -> dict:
    """The default of each setting, by name. item: a dataclass or an instance of one."""
    values = {}
    for f in dataclasses.fields(item):
        values[f.name] = f.default
        if f.default_factory is not dataclasses.MISSING:
            values[f.name] = f.default_factory()
    return values


def refuse(reasons: dict[str, str], given: dict, sources: dict[str, str], but: set[str]) -> None:
    """UserError for the first of the keys that is not in `but`."""
    for key, reason in reasons.items():
        if key not in but:
            raise UserError(f"{sources[key]}: {key}={given[key]} has no effect: {reason}")


def evaluates(run) -> bool:
    return run.eval_strategy != "no"  # the text of an enum equals it, str() of it does not


def saves_checkpoints(run) -> bool:
    """True if the run saves checkpoints by steps, by evaluations, or by the clock (`runs.checkpoint_clock`)."""
    minutes = getattr(run, "checkpoint_minutes", None)
    if run.save_strategy != "no" or minutes:
        return True
    # Only ppo has this strategy where its user gave none.
    return minutes is None and not getattr(run, "wants_no_checkpoints", True)


def picks_by_metric(run) -> bool:
    """True if something is chosen by metric_for_best_model."""
    return (
        run.load_best_model_at_end
        or run.save_strategy == "best"
        or run.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    )


def has_adams_settings(run) -> bool:
    """True if the optimizer has two decay rates and an epsilon."""
    return run.optim not in ("adafactor", "sgd", "adagrad", "rmsprop")


def reads_optim_args(run) -> bool:
    return run.optim not in ("adamw_torch", "adamw_torch_fused", "adafactor")


# Keys of the push of a finished run (`rlhf.hub.recording`). They change nothing in the run itself.
PUSH = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")

# Of transformers.TrainingArguments, in every recipe.
ARGUMENTS = (
    Unused(
        ("hub_strategy", "hub_always_push"),
        "a finished run is pushed once, as one commit; drop it",
    ),
    Unused(
        ("hub_token",),
        "a token among the settings can be read by others on this machine; set HF_TOKEN, or log in with `hf auth login`",
    ),
    Unused(PUSH[1:], "set push_to_hub: true too", lambda run: run.push_to_hub),
    Unused(
        ("do_train", "do_eval", "do_predict"),
        "a recipe trains, and evaluates where there are evaluation rows; drop it",
    ),
    Unused(
        ("auto_find_batch_size",),
        "an update would have another number of rows than the record says; set per_device_train_batch_size, and "
        "gradient_accumulation_steps to make up for a smaller one",
    ),
    Unused(
        ("bf16_full_eval", "fp16_full_eval"),
        "it would round the weights that are saved; use bf16 or fp16, which keep them in float32",
    ),
    Unused(
        ("fsdp", "fsdp_config", "deepspeed", "parallelism_config"),
        "how a run is split over devices is accelerate's: accelerate launch --config_file recipes/accelerate/fsdp2.yaml "
        "(or zero2.yaml, zero3.yaml) ...",
    ),
    Unused(
        ("trust_remote_code",),
        "code of a checkpoint is never run here; take a checkpoint of an architecture that transformers has",
    ),
    Unused(
        ("logging_nan_inf_filter",),
        "a loss that is not finite must be seen; drop it",
        fixed=False,
    ),
    Unused(
        ("include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches"),
        "the metrics of a recipe are computed from outputs and labels, all at once; drop it",
    ),
    Unused(("label_names",), "a recipe names its own labels; drop it"),
    Unused(
        ("optim_target_modules",),
        "only GaLore and APOLLO read it; set optim to one of them",
        lambda run: run.optim.startswith(("galore", "apollo")),
    ),
    Unused(
        ("optim_args",), "this optim reads none; set another optim, or drop it", reads_optim_args
    ),
    Unused(
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        "this optim is not of Adam's kind; drop it, or set another optim",
        has_adams_settings,
    ),
    Unused(
        ("eval_steps",),
        "it counts only with eval_strategy: steps",
        lambda run: run.eval_strategy == "steps",
    ),
    Unused(("eval_delay", "eval_on_start"), "eval_strategy is no; set it", evaluates),
    Unused(
        ("save_steps",),
        "it counts only with save_strategy: steps",
        lambda run: run.save_strategy == "steps",
    ),
    Unused(
        ("save_total_limit", "save_only_model"),
        "the run saves no checkpoints; set save_strategy",
        saves_checkpoints,
    ),
    Unused(
        ("metric_for_best_model", "greater_is_better"),
        "nothing is chosen by it; set load_best_model_at_end: true",
        picks_by_metric,
    ),
    Unused(
        ("logging_steps", "logging_first_step"),
        "it counts only with logging_strategy: steps",
        lambda run: run.logging_strategy == "steps",
    ),
    Unused(
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        "set gradient_checkpointing: true too",
        lambda run: run.activation_checkpointing,
    ),
    Unused(
        ("liger_kernel_config",),
        "set use_liger_kernel: true too",
        lambda run: run.use_liger_kernel,
    ),
)

# Of Trainer.evaluate, for a recipe that evaluates by code of its own.
EVALUATION_LOOP = Unused(
    ("prediction_loss_only", "eval_use_gather_object", "eval_accumulation_steps"),
    "the evaluation does not use the Trainer's loop; drop it",
)
WHOLE_OUTPUTS = Unused(
    ("prediction_loss_only",), "the metrics are computed from all outputs; drop it"
)
OWN_MODULE = Unused(
    ("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel"),
    "the model is trained inside a module of our own, which these do not reach; drop it",
)
