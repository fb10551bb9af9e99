"""Every trainer under every layout gives what one process gives: metrics, saved weights, and a run that is resumed.

DDP, ZeRO-2, ZeRO-3 and FSDP2 run on two CPU processes. Those of FSDP2 stand for GPUs.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.runs.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["red", "green", "blue", "grey", "white", "black"]

SCRIPT = """
import json, os, sys, typing
sys.path.insert(0, sys.argv[1])
from conftest import load_recipe
from fsdp_on_cpu import stand_in_for_gpus

fsdp = stand_in_for_gpus()
if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":  # else weights as small as these stay whole
    from accelerate.utils import DeepSpeedPlugin
    finish = DeepSpeedPlugin.__post_init__
    def split_all(plugin):
        finish(plugin)
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    DeepSpeedPlugin.__post_init__ = split_all

from rlhf.runs.settings import parse

processes = int(os.environ.get("WORLD_SIZE", 1))
common = ["--use_cpu", str(not fsdp), "--per_device_train_batch_size", str(4 // processes), "--report_to", "none"]
for recipe, flags in json.load(open(sys.argv[2])):
    module = load_recipe(recipe)
    hints = typing.get_type_hints(module.main)
    hints.pop("return", None)
    flags = [flag.replace("RUNS", sys.argv[3]) for flag in flags]
    module.main(*parse(list(hints.values()), "", [*common, *flags]))
import torch.distributed as dist
if dist.is_initialized():
    dist.destroy_process_group()
"""

# A large epsilon: AdamW's step is then a smooth function of the gradient, whose clipping can be seen too.
COMMON = """--precision fp32 --max_steps 4 --learning_rate 1e-2 --adam_epsilon 1e-3 --max_grad_norm 0.1 --logging_steps 1
    --eval_strategy no --save_strategy no --lr_scheduler_type linear --per_device_eval_batch_size 2"""
CHECKPOINTS = "--save_strategy steps --save_steps 2"
SMALL = "--from_scratch true --hidden_size 16 --layers 2 --heads 2 --context 64 --dropout 0"
ROWS = "--dataset_name DATA/{0}.jsonl --eval_dataset_name DATA/{0}-held-out.jsonl"
ANSWERS = "--max_completion_length 4 --eval_limit 3"
LORA = "--use_peft true --lora_r 2"
RUNS = {
    "pretrain": f"pretrain {ROWS} {SMALL} --tokenizer_name_or_path DATA/gpt2 --block_size 16",
    "masked": f"pretrain {ROWS} {SMALL} --tokenizer_name_or_path DATA/bert --block_size 16 --objective masked",
    "sft": f"sft {ROWS} --model_name_or_path DATA/base {CHECKPOINTS}",
    "sft-resumed": f"sft {ROWS} --model_name_or_path DATA/base {CHECKPOINTS} --resume_from_checkpoint RUNS/sft/checkpoint-2",
    "sft-lora": f"sft {ROWS} --model_name_or_path DATA/base {LORA}",
    "reward": f"reward {ROWS} --model_name_or_path DATA/base {CHECKPOINTS} --eval_strategy steps --eval_steps 2",
    "reward-resumed": f"reward {ROWS} --model_name_or_path DATA/base {CHECKPOINTS} --eval_strategy steps --eval_steps 2 "
    "--resume_from_checkpoint RUNS/reward/checkpoint-2",
    "reward-lora": f"reward {ROWS} --model_name_or_path DATA/base {LORA} --demonstrations DATA/sft.jsonl",
    "dpo": f"dpo {ROWS} --model_name_or_path DATA/base {CHECKPOINTS} --eval_strategy steps --eval_steps 2 {ANSWERS}",
    "dpo-resumed": f"dpo {ROWS} --model_name_or_path DATA/base {CHECKPOINTS} --eval_strategy steps --eval_steps 2 {ANSWERS} "
    "--resume_from_checkpoint RUNS/dpo/checkpoint-2",
    "dpo-lora": f"dpo {ROWS} --model_name_or_path DATA/base {LORA} {ANSWERS}",
    "kto": f"kto {ROWS} --model_name_or_path DATA/base {ANSWERS}",
    "kto-before": f"kto {ROWS} --model_name_or_path DATA/base {ANSWERS} --precompute_ref_log_probs true",
    "ilql": f"ilql {ROWS} --model_name_or_path DATA/base {CHECKPOINTS} {ANSWERS}",
    "ilql-resumed": f"ilql {ROWS} --model_name_or_path DATA/base {CHECKPOINTS} {ANSWERS} "
    "--resume_from_checkpoint RUNS/ilql/checkpoint-2",
    "labels": f"classification {ROWS} {SMALL} --tokenizer_name_or_path DATA/bert",
    "best": f"classification {ROWS} {SMALL} --tokenizer_name_or_path DATA/bert {CHECKPOINTS} --eval_strategy steps "
    "--eval_steps 2 --metric_for_best_model loss --greater_is_better true",
    "numbers": f"classification {ROWS} {SMALL} --tokenizer_name_or_path DATA/bert",
}
FILES = {
    "masked": "pretrain",
    "best": "labels",
    "dpo": "reward",
    "dpo-resumed": "reward",
    "dpo-lora": "reward",
    "ilql": "reward",
    "ilql-resumed": "reward",
}  # run -> the rows that it reads, where they have another name
KINDS = {"ddp": "ddp_cpu", "zero2": "zero2_cpu", "zero3": "zero3_cpu", "fsdp2": "fsdp2"}
# Not under layouts that split the weights: tests/direct_preference/test_trainers.py
DIRECT = ("dpo", "dpo-resumed", "dpo-lora", "kto", "kto-before", "ilql", "ilql-resumed")
# tests/runs/test_sharding.py has the masked one.
REFUSED = {"zero2": DIRECT, "zero3": DIRECT, "fsdp2": ("masked", *DIRECT)}
NAMES = {"ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}


def write_rows(folder: Path) -> None:
    """32 training rows and 4 held-out ones of each kind: whole batches, of which no process gets fewer than another."""
    rows = {"pretrain": [], "sft": [], "reward": [], "kto": [], "labels": [], "numbers": []}
    for first in COLOURS:
        for second in COLOURS:
            text = f"what is {first} and {second}"
            rows["pretrain"].append({"text": f"{text} it is {first} " * 4})
            rows["sft"].append({"prompt": text, "completion": f"it is {first}"})
            rows["reward"].append(
                {
                    "prompt": text,
                    "completions": [f"it is {first}", "no", "no no"],
                    "ranks": [0, 1, 1],
                }
            )
            good = first < second
            rows["kto"].append({"prompt": text, "completion": "it is", "label": good})
            rows["labels"].append({"text": text, "label": first})
            rows["numbers"].append({"text": text, "label": float(len(text))})
    for kind, all_rows in rows.items():
        held_out = all_rows[::9]
        trained = [row for row in all_rows if row not in held_out]
        for name, part in ((kind, trained), (f"{kind}-held-out", held_out)):
            lines = [json.dumps(row) + "\n" for row in part]
            (folder / f"{name}.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_tokenizer):
    from rlhf.models.scratch import new_policy

    folder = tmp_path_factory.mktemp("data")
    write_rows(folder)
    words = [*COLOURS, "what", "is", "and", "it", "no", "user", "assistant"]
    for kind in ("bert", "gpt2"):
        make_tokenizer(words, kind).save_pretrained(folder / kind)
    tokenizer = make_tokenizer(words, "gpt2")
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, layers=2, heads=2, context=64, dropout=0.0)
    new_policy(tokenizer, model_type="gpt2", **sizes).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


def run_all(start: list[str], folder: Path, data: Path, without: tuple = ()) -> tuple[Path, str]:
    """Run all recipes in one start. Returns the folder of the runs and what was printed."""
    commands = []
    for name, line in RUNS.items():
        if name in without:
            continue
        kind = FILES.get(name, name.partition("-")[0])
        recipe, *flags = line.format(kind).replace("DATA", str(data)).split()
        commands.append((recipe, [*COMMON.split(), *flags, "--output_dir", f"RUNS/{name}"]))
    (folder / "script.py").write_text(SCRIPT)
    (folder / "commands.json").write_text(json.dumps(commands))
    arguments = [folder / "script.py", ROOT / "tests", folder / "commands.json", folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*start, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=environment,
        timeout=1800,  # DeepSpeed's first start compiles
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory, data):
    return run_all([sys.executable], tmp_path_factory.mktemp("one"), data)


@pytest.fixture(scope="module", params=list(KINDS))
def two(request, tmp_path_factory, data):
    if request.param.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed; it is optional: pip install deepspeed")
    layout = ROOT / "recipes" / "accelerate" / f"{KINDS[request.param]}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    folder = tmp_path_factory.mktemp(request.param)
    start = [*launch, "--config_file", str(layout)]
    without = REFUSED.get(request.param, ())
    return *run_all(start, folder, data, without), request.param


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def numbers(record: RunRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if isinstance(value, float)}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_each_layout_gives_the_run_of_one_process(one, two, name):
    if name in REFUSED.get(two[2], ()):
        pytest.skip("refused")
    assert f"2 processes on cpu ({NAMES[two[2]]} over gloo)" in two[1]
    records = [RunRecord.load(folder / name) for folder in (one[0], two[0])]
    assert [record.status for record in records] == ["done", "done"]
    mine, theirs = map(numbers, records)
    assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-4)
    expected = weights_of(one[0] / name)
    saved = weights_of(two[0] / name)
    assert saved.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(saved[key], tensor, atol=1e-4, rtol=0, msg=f"{name} {key}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ilql"])
def test_a_resumed_run_equals_the_uninterrupted_one_in_each_layout(two, name):
    if name in REFUSED.get(two[2], ()):
        pytest.skip("refused")
    whole, resumed = weights_of(two[0] / name), weights_of(two[0] / f"{name}-resumed")
    for key, tensor in whole.items():
        assert torch.equal(resumed[key], tensor), key


@pytest.mark.slow
def test_a_checkpoint_holds_a_whole_model(two):
    checkpoint = weights_of(two[0] / "sft" / "checkpoint-2")
    # FSDP2 writes the output, which is the embeddings, a second time.
    assert checkpoint.keys() >= weights_of(two[0] / "sft").keys()
    assert all(tensor.numel() for tensor in checkpoint.values())
