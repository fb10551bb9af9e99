"""Two real processes over gloo give the run that one gives: same metrics, same weights, within float error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from conftest import WORDS, tiny_trainer, word_tokenizer
from rlhf.policy_gradient import trust_region

trust_region.FISHER_SHARE = 1  # a tenth of the micro-batches of two processes are others than of one
prompts = [" ".join(WORDS[: 1 + place % 3]) + " " + word for place, word in enumerate(WORDS)]
results, weights = {}, {}
processes = None
for name, settings in {
    "ppo": dict(kl_target=0.5, kl_horizon=50),
    "grpo": dict(algorithm="grpo", num_generations=4, models={"value_model": None}),
    "dr_grpo": dict(algorithm="dr_grpo", num_generations=4, models={"value_model": None}),
    "gspo": dict(algorithm="gspo", num_generations=4, models={"value_model": None}),
    "ppo-ptx": dict(
        ptx_coef=0.5, ptx_per_episode=2, ema_decay=0.8, value_warmup_rollouts=1,
        models={"texts": [[2, 3, 0], [4, 5, 6, 7, 8, 0], [9, 0], [5, 2, 9, 3, 0], [3] * 12]},
    ),
    "trpo": dict(algorithm="trpo", ema_decay=0.8),
}.items():
    import os
    processes = int(os.environ.get("WORLD_SIZE", 1))

    def start(folder):
        return tiny_trainer(
            word_tokenizer(), folder, rows=[{"prompt": p} for p in prompts], save_every=1,
            eval_rows=[{"prompt": w} for w in WORDS[:3]], gradient_accumulation_steps=4 // processes,
            per_device_train_batch_size=2, lr_scheduler_type="linear", warmup_steps=2, **settings,
        )

    def kept(trainer):
        found = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        if trainer.average is not None:
            found |= {f"average {place}": tensor for place, tensor in enumerate(trainer.average.tensors)}
        return found

    def logs(trainer):
        return [row for row in trainer.state.log_history if "score" in row]

    folder = sys.argv[2] + "/" + name
    trainer = start(folder)
    first = trainer.rollouts.make(0)
    trainer.rollouts.kl_coef = trainer.args.kl_coef
    trainer.train()
    evaluation = trainer.evaluate()
    resumed = start(folder + "-resumed")
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{trainer.args.steps_per_rollout}")
    results[name] = {
        "processes": trainer.args.world_size, "logs": logs(trainer), "evaluation": evaluation,
        "advantages": first.advantages.tolist(), "completions": first.completion_ids.tolist(),
        "resumed logs": logs(resumed),
    }
    weights[name], weights[name + "-resumed"] = kept(trainer), kept(resumed)
if trainer.is_world_process_zero():
    json.dump(results, open(sys.argv[2] + "/results.json", "w"))
    torch.save(weights, sys.argv[2] + "/weights.pt")
import torch.distributed as dist
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(SCRIPT)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--quiet",
        "--main_process_port",
        "0",
    ]
    launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml")]
    found = []
    for name, start in {"one": [sys.executable], "two": launch}.items():
        (folder / name).mkdir()
        command = [*start, str(folder / "script.py"), str(ROOT / "tests"), str(folder / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results = json.loads((folder / name / "results.json").read_text())
        found.append((results, torch.load(folder / name / "weights.pt"), folder / name))
    assert [run[0]["ppo"]["processes"] for run in found] == [1, 2]
    return found


LOOSER = {
    "ppo": 1,
    "grpo": 1,
    "dr_grpo": 1,
    "gspo": 1,
    "ppo-ptx": 1,
    "trpo": 10,
}  # ten solver steps of trpo amplify the rounding of sums
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("algorithm", LOOSER)]


def test_invariant_26_both_sample_the_same_completions(runs, algorithm):
    one, two = (run[0][algorithm] for run in runs)
    assert one["completions"] == two["completions"]


def test_invariant_18_advantages_are_whitened_over_all_processes(runs, algorithm):
    one, two = (torch.tensor(run[0][algorithm]["advantages"]) for run in runs)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)


def test_invariant_27_two_processes_resumed_are_two_uninterrupted(runs, algorithm):
    results, weights, _ = runs[1]
    for name, tensor in weights[algorithm].items():
        assert torch.equal(weights[f"{algorithm}-resumed"][name], tensor), name
    whole, resumed = (
        [
            {name: value for name, value in row.items() if "second" not in name}
            for row in results[algorithm][part]
        ]
        for part in ("logs", "resumed logs")
    )
    assert len(whole) == 2 and resumed == whole
    averaged = [name for name in weights[algorithm] if name.startswith("average")]
    assert bool(averaged) == (algorithm in ("ppo-ptx", "trpo"))


def test_invariant_20_23_24_26_metrics_and_schedule_are_the_same(runs, algorithm):
    one, two = (run[0][algorithm]["logs"] for run in runs)
    assert len(one) == len(two) == 2
    for first, second in zip(one, two, strict=True):
        for name in first:
            if "seconds" not in name:
                assert second[name] == pytest.approx(
                    first[name], rel=1e-3 * LOOSER[algorithm], abs=2e-5
                ), name


def test_invariant_30_an_evaluation_set_that_does_not_divide(runs, algorithm):
    one, two = (run[0][algorithm]["evaluation"] for run in runs)
    assert two == pytest.approx(one, rel=1e-4 * LOOSER[algorithm], abs=1e-5)
    lines = [(run[2] / algorithm / "samples.jsonl").read_text().splitlines() for run in runs]
    texts = [
        [(json.loads(line)["prompt"], json.loads(line)["completion"]) for line in part]
        for part in lines
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 3


def test_invariant_20_26_weights_are_the_same(runs, algorithm):
    one, two = (run[1][algorithm] for run in runs)
    for name, tensor in one.items():
        found, say = two[name], lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(found, tensor, atol=1e-5 * LOOSER[algorithm], rtol=0, msg=say)
    assert len(list((runs[1][2] / algorithm).glob("checkpoint-*/model.safetensors"))) == 2
