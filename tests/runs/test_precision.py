"""The precision of a run. A model counts as large enough to time where a test says so; rates are given, not measured."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments
from trl import SFTConfig

from rlhf.models.precision import MatrixRates
from rlhf.runs import precision
from rlhf.runs.precision import LAUNCHED, precision_of_resumed, set_precision
from rlhf.runs.record import RunRecord
from rlhf.runs.run import Run
from rlhf.runs.settings import DataSettings, ModelSettings, parse

XEON = MatrixRates(fp32=240.4, bf16=147.3)
EPYC = MatrixRates(fp32=160.0, bf16=415.0)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv(LAUNCHED, raising=False)


@pytest.fixture
def rates(monkeypatch):
    """Lets a tiny model count as large, with given rates."""

    def rates(measured):
        monkeypatch.setattr(precision, "is_tiny", lambda model: False)
        monkeypatch.setattr(precision, "training_rates", lambda *args, **kwargs: measured)

    return rates


@pytest.fixture
def begin(tmp_path):
    """A run under way, from keys as in a YAML, that has not decided its precision."""

    def begin(*classes, folder="run", checkpoint=None, **keys):
        flags = ["--output_dir", str(tmp_path / folder), "--report_to", "none"]
        for name, value in keys.items():
            flags += [f"--{name}", str(value).lower()]
        settings, args = parse([ModelSettings, *(classes or [TrainingArguments])], "", flags)
        args.resume_from_checkpoint = checkpoint
        run = Run("test", settings, args)
        run.said = []
        run.say = run.said.append
        return run, settings

    return begin


@pytest.fixture
def decide(begin, make_policy, tokenizer):
    """The run after its precision is decided."""

    def decide(*classes, default="fp32", dtype=torch.float32, **keys):
        run, settings = begin(*classes, **keys)
        model = make_policy(tokenizer).to(dtype)
        set_precision(run, settings, model, tokens=64, default=default)
        return run

    return decide


def computes_in(run):
    """The precision of the run's accelerator, which is what counts."""
    trainer = Trainer(model=torch.nn.Linear(2, 2), args=run.args)
    return trainer.accelerator.mixed_precision


@pytest.mark.parametrize(
    ("measured", "chosen", "said"),
    [
        (XEON, "no", "precision: fp32 (240 GFLOP/s a core; bf16 147)"),
        (EPYC, "bf16", "precision: bf16 (415 GFLOP/s a core; fp32 160)"),
    ],
)
def test_auto_takes_what_is_faster_and_says_both_rates(decide, rates, measured, chosen, said):
    rates(measured)
    run = decide(precision="auto")
    assert run.said == [said]
    assert computes_in(run) == chosen and run.args.bf16 == (chosen == "bf16")
    assert run.record.precision["gflops"] == {"fp32": measured.fp32, "bf16": measured.bf16}


def test_a_tiny_model_is_not_timed(decide, monkeypatch):
    monkeypatch.setattr(precision, "training_rates", None)
    assert computes_in(decide(precision="auto")) == "no"


@pytest.mark.parametrize(
    ("keys", "default", "chosen"),
    [
        ({}, "fp32", "no"),
        ({}, "auto", "bf16"),
        ({"precision": "fp32"}, "auto", "no"),
        ({"precision": "bf16"}, "fp32", "bf16"),
        ({"bf16": True}, "fp32", "bf16"),
        ({"bf16": False}, "auto", "no"),
        ({"precision": "bf16", "bf16": True}, "fp32", "bf16"),
    ],
)
@pytest.mark.parametrize("arguments", [TrainingArguments, SFTConfig])
def test_the_keys_decide(decide, rates, arguments, keys, default, chosen):
    rates(EPYC)
    assert computes_in(decide(arguments, default=default, **keys)) == chosen


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"precision": "fp32", "bf16": True}, "precision: fp32 and bf16: true say two"),
        ({"precision": "auto", "bf16": False}, "precision: auto and bf16: false say two"),
        ({"precision": "bf16", "fp16": True}, "precision: bf16 and fp16: true say two"),
        ({"precision": "fp16"}, "use one of auto, fp32, bf16, or fp16: true"),
        ({"precision": "fp32", "dtype": torch.bfloat16}, "computes in bf16 weights"),
    ],
)
def test_a_contradiction_is_refused(decide, refused, keys, said):
    assert said in refused(decide, **keys)


def test_bf16_is_refused_where_the_device_has_none(decide, monkeypatch, refused):
    monkeypatch.setattr(precision, "supports_bf16", lambda device: False)
    assert computes_in(decide(precision="auto")) == "no"
    assert "use precision: fp32" in refused(decide, precision="bf16")


# ---- accelerate's own setting ----


def test_fp16_is_refused_on_a_cpu(decide, refused, monkeypatch):
    """accelerate computes in fp32 there, and the record said fp16."""
    assert "fp16 does not work on a cpu: use bf16: true" in refused(decide, fp16=True)
    monkeypatch.setenv(LAUNCHED, "fp16")
    assert "fp16 does not work on a cpu" in refused(decide)


def test_what_accelerate_was_told_is_followed_by_name(decide, monkeypatch):
    """accelerate's config had won without a word: the run's settings, record and memory table said fp32."""
    monkeypatch.setenv(LAUNCHED, "bf16")
    for keys in ({}, {"precision": "auto"}, {"bf16": True}):
        run = decide(**keys)
        assert run.args.bf16 and computes_in(run) == "bf16"
        assert run.record.precision["name"] == "bf16"
    assert "accelerate" in decide().said[0]


def test_what_accelerate_was_told_must_not_contradict_the_keys(decide, monkeypatch, refused):
    monkeypatch.setenv(LAUNCHED, "bf16")
    for keys in ({"precision": "fp32"}, {"bf16": False}, {"fp16": True}):
        assert "accelerate was told mixed_precision: bf16" in refused(decide, **keys)
    monkeypatch.setenv(LAUNCHED, "fp8")
    assert "not supported" in refused(decide)


# ---- resuming ----


def test_a_resumed_run_keeps_the_recorded_choice(decide, rates, refused):
    rates(EPYC)
    first = decide(precision="auto")
    first.save()
    rates(XEON)  # as if other programs had the processor
    checkpoint = str(first.folder / "checkpoint-8")
    resumed = decide(precision="auto", checkpoint=checkpoint)
    assert computes_in(resumed) == "bf16" and resumed.said == [
        "precision: bf16 (as the run that is resumed)"
    ]
    assert resumed.record.precision["gflops"] == {"fp32": 160.0, "bf16": 415.0}
    message = refused(decide, precision="fp32", checkpoint=checkpoint)
    assert "computes in bf16" in message and "set precision: bf16" in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"bf16": True}, "bf16"),
        ({"fp16": True}, "fp16"),
        ({}, "fp32"),
        ({"dtype": "bfloat16"}, None),
    ],
)
def test_an_older_record_tells_the_precision_by_its_settings(tmp_path, config, expected):
    RunRecord.begin("ppo", config=config, seed=0).save(tmp_path)
    found = precision_of_resumed(str(tmp_path / "checkpoint-1"))
    assert found.get("name") == expected


def test_a_run_without_a_record_decides_anew(tmp_path):
    assert precision_of_resumed(None) == {}
    assert precision_of_resumed(str(tmp_path / "checkpoint-1")) == {}


def test_the_record_is_written_with_its_reason(decide, rates):
    rates(XEON)
    run = decide(precision="auto")
    run.save()
    content = json.loads((run.folder / "run.json").read_text())
    assert content["precision"] == {
        "name": "fp32",
        "reason": "240 GFLOP/s a core; bf16 147",
        "gflops": {"fp32": 240.4, "bf16": 147.3},
    }


# ---- the dtype of the weights ----


def test_bf16_weights_need_no_autocast_and_are_warned_of(decide):
    run = decide(dtype=torch.bfloat16, precision="auto", learning_rate=1e-7)
    assert computes_in(run) == "no" and run.record.precision["name"] == "bf16 weights"
    assert run.said[0] == "precision: bf16 weights (dtype: bfloat16)"
    assert "a step of AdamW changes" in run.said[1] and "dtype: float32" in run.said[1]
    # LoRA matrices are fp32
    assert len(decide(dtype=torch.bfloat16, use_peft=True, learning_rate=1e-7).said) == 1
    assert computes_in(decide(dtype=torch.bfloat16, bf16=False)) == "no"


# ---- DeepSpeed and several processes ----


def test_deepspeed_is_told_too():
    plugin = SimpleNamespace(deepspeed_config={"bf16": {"enabled": False}})
    args = SimpleNamespace(deepspeed_plugin=plugin)
    precision.apply(precision.Precision("bf16", "as set"), args)
    assert args.bf16 and args.mixed_precision == "bf16"
    assert plugin.deepspeed_config == {"bf16": {"enabled": True}, "fp16": {"enabled": False}}
    precision.apply(precision.Precision("fp32", "as set"), args)
    assert not args.bf16 and not plugin.deepspeed_config["bf16"]["enabled"]


def test_bf16_is_unset_unless_it_is_given(tmp_path):
    flags = ["--output_dir", str(tmp_path)]
    for arguments in (TrainingArguments, SFTConfig):
        _, args = parse([DataSettings, arguments], "", flags)
        assert args.bf16 is None
        _, args = parse([DataSettings, arguments], "", [*flags, "--bf16", "false"])
        assert args.bf16 is False
        _, args = parse([DataSettings, arguments], "", [*flags, "--bf16=true"])
        assert args.bf16 is True
