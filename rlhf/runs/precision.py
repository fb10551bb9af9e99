"""The precision that a run computes in: as its keys say, as `accelerate launch` says, or the faster one here.

Decided once, when the model is loaded and before its trainer is built, on the first process for all of them. run.json keeps
the choice, and a run that is resumed keeps it too: another precision would not continue the same run.
"""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from rlhf.errors import UserError
from rlhf.models.precision import (
    PRECISIONS,
    bf16_weights_warning,
    is_tiny,
    supports_bf16,
    training_rates,
    weights_dtype,
)
from rlhf.models.quantized import compute_in
from rlhf.runs.record import RECORD, read_object

AS_SET = "as set"
LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # set by `accelerate launch` from its config file or flag


@dataclass(frozen=True)
class Precision:
    """The precision that a run computes in, and why.

    name: "fp32"; "bf16" or "fp16", by autocast over fp32 weights; "bf16 weights", without autocast.
    reason: in words, for the terminal.
    gflops: measured rates by name of the precision.
    """

    name: str
    reason: str
    gflops: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"precision: {self.name} ({self.reason})"


def set_precision(run, settings, model, *, tokens: int, default: str = "fp32") -> None:
    """Decide the precision of a run, tell its TrainingArguments, record it, and say it unless a key says it already.

    run: `runs.run.Run`. settings: ModelSettings.
    tokens: of a micro-batch, at most.
    default: what holds if neither the keys nor accelerate name a precision.
    """
    args = run.args
    asked = asked_precision(settings.precision, args)
    if settings.precision is None and asked == "fp32" and weights_dtype(model) != torch.float32:
        asked = None  # bf16: false, and the weights are bf16 by `dtype`
    launched = launched_precision(asked)
    chosen = None
    if run.main:
        chosen = recorded(run.record.precision)
        if chosen is None:
            wanted = launched or asked or default
            chosen = choose(wanted, model, tokens=tokens, device=args.device)
        if launched and chosen.reason == AS_SET:
            chosen = replace(chosen, reason="accelerate's mixed_precision")
    chosen = from_first_process(chosen, args)
    check(chosen, launched or asked, args.device)
    apply(chosen, args)
    # Packed matrices have a dtype of their own, to which autocast does not reach.
    if args.bf16 or args.fp16:
        compute_in(model, torch.bfloat16 if args.bf16 else torch.float16)
    run.record.precision = asdict(chosen)
    if asked in (None, "auto") and chosen.reason != AS_SET:
        run.say(str(chosen))
    warning = None
    # LoRA matrices are fp32, and DeepSpeed's optimizer keeps an fp32 copy.
    if not settings.use_peft and args.deepspeed_plugin is None:
        warning = bf16_weights_warning(model, learning_rate=args.learning_rate)
    if warning:
        run.say(warning)


def asked_precision(precision: str | None, args) -> str | None:
    """The precision that the keys precision, bf16 and fp16 name together, or None where they name none.

    A bf16 of None was not given (`runs.settings.parse`).
    """
    if precision not in (None, *PRECISIONS):
        raise UserError(
            f"precision={precision!r}: use one of {', '.join(PRECISIONS)}, or fp16: true"
        )
    by_flag = None
    if args.fp16:
        by_flag = "fp16"
    elif args.bf16 is not None:
        by_flag = "bf16" if args.bf16 else "fp32"
    if precision and by_flag not in (None, precision):
        key = "fp16: true" if args.fp16 else f"bf16: {str(args.bf16).lower()}"
        raise UserError(f"precision: {precision} and {key} say two different things: drop one")
    return precision or by_flag


def launched_precision(asked: str | None) -> str | None:
    """The precision that `accelerate launch` was told, or None. Refuses one that the keys contradict.

    "no" is accelerate's default and says nothing.
    """
    launched = os.environ.get(LAUNCHED, "no").lower()
    if launched in ("no", ""):
        return None
    if launched not in ("bf16", "fp16"):
        raise UserError(
            f"accelerate was told mixed_precision: {launched}, which is not supported: use bf16, or no and the key precision"
        )
    if asked not in (None, "auto", launched):
        raise UserError(
            f"the settings say {asked}, and accelerate was told mixed_precision: {launched}: "
            "drop mixed_precision from its config file or flags"
        )
    return launched


def choose(wanted: str, model, *, tokens: int, device: torch.device) -> Precision:
    """The precision of a new run. wanted: one of PRECISIONS, or "fp16"."""
    if weights_dtype(model) == torch.bfloat16 and wanted in ("auto", "fp32"):
        return Precision("bf16 weights", "dtype: bfloat16")
    if wanted != "auto":
        return Precision(wanted, AS_SET)
    if not supports_bf16(device):
        return Precision("fp32", f"no bf16 on {device.type}")
    if is_tiny(model):
        return Precision("fp32", "too small a model to time")
    rates = training_rates(model, tokens=tokens, device=device)
    gflops = {"fp32": round(rates.fp32, 1), "bf16": round(rates.bf16, 1)}
    name = rates.faster
    other = "fp32" if name == "bf16" else "bf16"
    per_core = " a core" if device.type == "cpu" else ""
    reason = f"{gflops[name]:.0f} GFLOP/s{per_core}; {other} {gflops[other]:.0f}"
    return Precision(name, reason, gflops)


def recorded(precision: dict) -> Precision | None:
    """The choice of the run that is resumed. {}: none."""
    if not precision:
        return None
    return Precision(precision["name"], "as the run that is resumed", precision.get("gflops") or {})


def precision_of_resumed(checkpoint: str | None) -> dict:
    """The entry `precision` of the run.json next to a checkpoint; {} for a new run.

    A record of an older version holds bf16 among its settings, if it is true.
    """
    if checkpoint is None:
        return {}
    record = read_object(Path(checkpoint).parent / RECORD)
    if record.get("precision"):
        return record["precision"]
    config = record.get("config") or {}
    for name in ("bf16", "fp16"):
        if config.get(name):
            return {"name": name}
    # Then accelerate, whose mixed_precision was not recorded, may have said more.
    says_more = launched_precision(None) or config.get("dtype", "float32") != "float32"
    return {"name": "fp32"} if record and not says_more else {}


def check(chosen: Precision, asked: str | None, device: torch.device) -> None:
    """Refuse a key, or accelerate's word, that is not what the run will compute in, and what the device lacks."""
    if asked not in (None, "auto", chosen.name):
        remedy = f"set precision: {chosen.name}"
        if chosen.name == "bf16 weights":
            remedy = "set dtype: float32, or precision: auto"
        raise UserError(
            f"the settings or accelerate say {asked}, but the run computes in {chosen.name} ({chosen.reason}): {remedy}"
        )
    if chosen.name == "fp16" and device.type == "cpu":
        # accelerate would compute in fp32 without a word.
        raise UserError(
            "fp16 does not work on a cpu: use bf16: true, or precision: auto for what is faster here"
        )
    if chosen.name == "bf16" and not supports_bf16(device):
        raise UserError(
            f"precision: bf16 does not work on this {device.type} device: use precision: fp32"
        )


def from_first_process(chosen: Precision | None, args) -> Precision:
    """The first process's choice, on every process."""
    if args.world_size == 1:
        return chosen
    import torch.distributed as dist

    choices = [chosen]
    dist.broadcast_object_list(choices, src=0, device=args.device)
    return choices[0]


def apply(chosen: Precision, args) -> None:
    """Set TrainingArguments that exist already to a precision. The Trainer reads them when it is made."""
    args.bf16, args.fp16 = chosen.name == "bf16", chosen.name == "fp16"
    args.mixed_precision = "no"
    if args.bf16 or args.fp16:
        args.mixed_precision = chosen.name
    if args.deepspeed_plugin is not None:
        # TrainingArguments have filled in what they were made with.
        config = args.deepspeed_plugin.deepspeed_config
        for name in ("bf16", "fp16"):
            config[name] = config.get(name) or {}
            config[name]["enabled"] = args.mixed_precision == name
