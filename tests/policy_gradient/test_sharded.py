"""Training split over two CPU processes by DeepSpeed's ZeRO-2, ZeRO-3 and by FSDP2 gives the run that one process gives."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf.models.actor_critic import ActorCritic, ValueHead
from rlhf.policy_gradient.sharding import (
    check_settings,
    has_sharded_weights,
    twin_of,
    whole_weights,
)

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import dataclasses, json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from conftest import WORDS, tiny_trainer, word_tokenizer
from fsdp_on_cpu import stand_in_for_gpus
from rlhf.algorithms.losses import clipped_surrogate_loss

fsdp = stand_in_for_gpus()
processes = int(os.environ.get("WORLD_SIZE", 1))
prompts = [" ".join(WORDS[: 1 + place % 3]) + " " + word for place, word in enumerate(WORDS)]
RUNS = {
    # No clipping with two groups of parameters: DeepSpeed clips them together, one process each by itself.
    "ppo": dict(max_grad_norm=0, value_learning_rate=1e-2, kl_target=0.5, kl_horizon=50, save_every=1),
    "grpo": dict(max_grad_norm=0.1, algorithm="grpo", num_generations=4, models={"value_model": None}),
    "resumed": dict(max_grad_norm=0, value_learning_rate=1e-2, kl_target=0.5, kl_horizon=50),
    "ptx": dict(max_grad_norm=0, ptx_coef=0.5, models={"texts": [[2, 3, 0], [4, 5, 6, 7, 8, 0], [9, 0]]}),
    "one NaN": dict(max_grad_norm=0, lr_scheduler_type="constant"),
    "warm-up": dict(max_grad_norm=0, value_warmup_rollouts=1),
    "bf16": dict(bf16=True),
}
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    del RUNS["warm-up"]
SETTINGS = dict(
    gradient_accumulation_steps=4 // processes, per_device_train_batch_size=2, lr_scheduler_type="linear", warmup_steps=2,
    rows=[{"prompt": p} for p in prompts], eval_rows=[{"prompt": w} for w in WORDS[:3]], use_cpu=not fsdp,
)
results = {}
for name, settings in RUNS.items():
    trainer = tiny_trainer(word_tokenizer(), sys.argv[2] + "/" + name, **SETTINGS | settings)
    if name == "one NaN":

        def spoilt(ratio, advantages, clip_range):
            losses = clipped_surrogate_loss(ratio, advantages, clip_range=clip_range)
            return losses * float("nan") if trainer.state.global_step == 3 else losses

        trainer.algorithm = dataclasses.replace(trainer.algorithm, policy_loss=spoilt)
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:  # else weights as small as these stay whole
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=sys.argv[2] + "/ppo/checkpoint-8" if name == "resumed" else None)
    after = trainer.evaluate()
    trainer.save_model()
    local = [getattr(p, "_local_tensor", p).numel() for p in trainer.model.parameters()]
    results[name] = {
        "kind": trainer.accelerator.distributed_type.value, "processes": trainer.args.world_size, "local": sum(local),
        "before": before, "after": after, "logs": [r for r in trainer.state.log_history if "policy_loss" in r],
    }
if trainer.is_world_process_zero():
    json.dump(results, open(sys.argv[2] + "/results.json", "w"))
if dist.is_initialized():
    dist.destroy_process_group()
"""

KINDS = {
    "zero2": ("zero2_cpu", "DEEPSPEED"),
    "zero3": ("zero3_cpu", "DEEPSPEED"),
    "fsdp2": ("fsdp2", "FSDP"),
}


def run(folder: Path, start: list[str]) -> tuple[dict, Path]:
    (folder / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*start, str(folder / "script.py"), str(ROOT / "tests"), str(folder)],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1200,  # DeepSpeed's first start compiles
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return json.loads((folder / "results.json").read_text()), folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), [sys.executable])


@pytest.fixture(scope="module", params=list(KINDS))
def two(request, tmp_path_factory):
    if request.param.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed; it is optional: pip install deepspeed")
    config, kind = KINDS[request.param]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        "--mixed_precision",
        "no",
    ]
    launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{config}.yaml")]
    results, folder = run(tmp_path_factory.mktemp(request.param), launch)
    assert all((r["kind"], r["processes"]) == (kind, 2) for r in results.values())
    return results, folder


@pytest.fixture(params=["ppo", "grpo", "resumed", "ptx", "one NaN", "warm-up"])
def name(request, two):
    if request.param not in two[0]:
        pytest.skip("refused under DeepSpeed")
    return request.param


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_knows_every_key_of_each_layout(path):
    assert path.read_text().startswith("# ")
    load_config_from_file(str(path))


def test_the_twin_is_the_model_while_it_is_filled_and_empty_otherwise(tokenizer, make_policy):
    model = ActorCritic(make_policy(tokenizer), ValueHead(16))
    batch = dict(prompt_ids=torch.tensor([[11, 2]]), completion_ids=torch.tensor([[3, 0]]))
    batch |= dict(
        prompt_mask=torch.ones(1, 2).bool(), mask=torch.ones(1, 2).bool(), temperature=1.0
    )
    twin = twin_of(model)
    with torch.no_grad():
        model.value_head.bias += 1  # weights of today, not of the day the twin was made
        with whole_weights(twin, model) as whole:
            torch.testing.assert_close(
                whole(**batch).log_probs, model(**batch).log_probs, atol=0, rtol=0
            )
            assert (
                torch.equal(whole(**batch).values, model(**batch).values)
                and whole(**batch).values[0, 0] != 0
            )
    assert sum(p.numel() for p in twin.parameters()) == 0 and not any(
        p.requires_grad for p in twin.parameters()
    )
    assert sum(p.numel() for p in model.parameters()) > 1000


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"trust_region": True}, "algorithm: trpo"),
        ({"ema_decay": 0.9}, "ema_decay: 0.9"),
        ({"share_trunk": True}, "share_trunk: true"),
        ({"value_warmup_rollouts": 2}, "value_warmup_rollouts: 2"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: true"),
    ],
)
def test_what_does_not_work_on_slices_is_refused(refused, kind, setting, said):
    defaults = dict(trust_region=False, share_trunk=False, ema_decay=None)
    defaults |= dict(value_warmup_rollouts=0, load_best_model_at_end=False)
    found = defaults | setting
    roles = {name: found.pop(name) for name in ("trust_region", "share_trunk")}
    call = (
        check_settings,
        SimpleNamespace(distributed_type=kind),
        SimpleNamespace(algorithm="trpo", **found),
    )
    if "value_warmup_rollouts" in setting and kind == DistributedType.FSDP:
        check_settings(*call[1:], **roles)
    else:
        message = refused(*call, **roles)
        assert (
            message.startswith(f"{said} does not work under {kind.value}: ")
            and "ddp.yaml" in message
        )


def test_fsdp_on_cpus_is_refused(monkeypatch, refused):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    launched = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    assert "FSDP was requested" in refused(has_sharded_weights, launched)


@pytest.mark.slow
def test_invariant_08_09_bf16_rollouts_are_those_of_the_update(two):
    first, second = two[0]["bf16"]["logs"]
    assert (
        first["first_ratio_error"]
        == second["first_ratio_error"]
        == first["kl"]
        == 0
        != second["kl"]
    )


@pytest.mark.slow
def test_weights_are_really_split(one, two, name, request):
    split = two[0][name]["local"] / one[0][name]["local"]
    assert split == pytest.approx(
        {"zero2": 1, "zero3": 0, "fsdp2": 0.5}[request.node.callspec.params["two"]], abs=0.02
    )


@pytest.mark.slow
def test_metrics_are_those_of_one_process(one, two, name):
    first, second = one[0][name], two[0][name]
    for when in ("before", "after"):
        mine, theirs = (
            {key: value for key, value in run[when].items() if "seconds" not in key}
            for run in (first, second)
        )
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-4)
    assert len(first["logs"]) == len(second["logs"])
    for mine, theirs in zip(first["logs"], second["logs"], strict=True):
        for key in set(mine) - {"grad_norm_policy", "grad_norm_value", "rollout_seconds"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-4), key
    assert sum(row["nonfinite_steps"] for row in second["logs"]) == (name == "one NaN")


@pytest.mark.slow
def test_gradient_norms(one, two, name):
    mine, theirs = one[0][name]["logs"][-1], two[0][name]["logs"][-1]
    if "grad_norm" not in theirs:
        for key in [key for key in mine if key.startswith("grad_norm")]:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3), key
    elif (
        name == "grpo"
    ):  # with one group of parameters DeepSpeed's norm of all is that of the policy
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm_policy"], rel=1e-3)


@pytest.mark.slow
def test_the_saved_policy_loads_and_is_that_of_one_process(one, two, name):
    first, second = (
        AutoModelForCausalLM.from_pretrained(run[1] / name).state_dict() for run in (one, two)
    )
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, atol=1e-4, rtol=0)
    if name != "grpo":
        heads = [
            load_file(run[1] / name / "value_model" / "value_head.safetensors")
            for run in (one, two)
        ]
        torch.testing.assert_close(heads[1], heads[0], atol=1e-4, rtol=0)
