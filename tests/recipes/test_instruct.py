"""The settings of the small instruct models, on tiny models of their architecture with their templates and stop tokens."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.commands.recipes import with_config_path
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import stop_token_ids
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.run import start

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("smollm2_360m", "qwen3_0.6b", "llama3.2_1b")
SMALL = {
    "sft": "--max_steps 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --eval_fraction 0 "
    "--eval_strategy no --max_length 300",
    "reward": "--max_steps 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_length 300",
    "ppo": "--total_episodes 8 --rollout_batch_size 4 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 "
    "--max_completion_length 6 --eval_fraction 0.2",
    "dpo": "--max_steps 2 --gradient_accumulation_steps 1 --eval_limit 2 --max_completion_length 4 --max_length 300",
}
DATA = {"sft": "demonstrations", "ppo": "prompts"}


@pytest.fixture(scope="module")
def make_models():
    path = ROOT / "benchmarks" / "instruct" / "make_models.py"
    spec = importlib.util.spec_from_file_location("make_models", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(write):
    questions = [f"How many legs have {i} horses?" for i in range(8)]
    answers = ["Four each.", "I have not counted them."]
    rows = {
        "demonstrations": [{"prompt": text, "completion": answers[0]} for text in questions],
        "rankings": [
            {"prompt": text, "completions": answers, "ranks": [0, 1]} for text in questions
        ],
        "prompts": [{"prompt": text} for text in questions],
    }
    return {kind: write(f"{kind}.jsonl", items) for kind, items in rows.items()}


@pytest.fixture
def run(recipe_module, data, tmp_path):
    """f(name, stage, model, *flags) runs the YAML of a stage, and returns the run's folder."""

    def run(name, stage, model, *flags):
        module = recipe_module(stage)
        argv = ["--config", str(ROOT / "recipes" / "configs" / stage / f"{name}.yaml")]
        argv += [*SMALL[stage].split(), "--dataset_name", data[DATA.get(stage, "rankings")]]
        argv += ["--model_name_or_path", str(model), "--output_dir", str(tmp_path / stage)]
        argv += ["--use_cpu", *map(str, flags)]
        start(module.main, module.__doc__, argv)
        assert RunRecord.load(tmp_path / stage).status == "done"
        return tmp_path / stage

    return run


@pytest.mark.parametrize(
    ("name", "opening", "stops"),
    [
        pytest.param(
            "smollm2_360m",
            "<|im_start|>assistant\n",
            ["<|im_end|>"],
            marks=pytest.mark.slow,
        ),
        (
            "qwen3_0.6b",
            "<|im_start|>assistant\n<think>\n\n</think>\n\n",
            ["<|im_end|>", "<|endoftext|>"],
        ),
        pytest.param(
            "llama3.2_1b",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sft_keeps_template_and_stop_tokens(make_models, run, tmp_path, name, opening, stops):
    base = make_models.make_model(name, tmp_path / "base", tiny=True)
    sft = str(run(name, "sft", base))
    tokenizer, model = load_tokenizer(sft), load_policy(sft)
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi")).endswith(opening)
    assert tokenizer.decode(encode_completion(tokenizer, "Yes")) == f"Yes{stops[0]}"
    assert tokenizer.convert_ids_to_tokens(stop_token_ids(model, tokenizer)) == stops


@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_a_dot_is_a_yaml_of_the_recipe(name):
    for given in (name, f"sft/{name}"):
        [flag, path] = with_config_path("sft", ["--config", given])
        assert flag == "--config" and Path(path).name == f"{name}.yaml" and Path(path).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_stage_runs_on_one_trunk(make_models, run, tmp_path, name, bits):
    if bits:
        pytest.importorskip("bitsandbytes")
    flags = ["--load_in_4bit", "true"] if bits else []
    base = make_models.make_model(name, tmp_path / "base", tiny=True)
    sft = run(name, "sft", base, *flags)
    reward = run(name, "reward", sft, *flags)
    ppo = run(name, "ppo", sft, "--reward_model_path", reward, *flags)
    dpo = run(name, "dpo", sft, *flags)
    # The adapter starts at 0: the policy is the reference.
    rollouts = [row for row in read_jsonl(ppo / "metrics.jsonl") if "kl" in row]
    assert rollouts[0]["kl"] == pytest.approx(0, abs=1e-4)
    for folder in (sft, reward, ppo, dpo):
        config = json.loads((folder / "config.json").read_text())
        assert "quantization_config" not in config
    before, after = load_policy(str(sft)), load_policy(str(ppo))
    moved = [
        key
        for key, weight in after.named_parameters()
        if not torch.equal(weight, before.get_parameter(key))
    ]
    assert moved and all("proj" in key for key in moved)


@pytest.mark.slow
def test_a_run_with_packed_weights_resumes_bit_for_bit(make_models, run, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = make_models.make_model("qwen3_0.6b", tmp_path / "base", tiny=True)
    flags = ["--load_in_4bit", "true", "--save_strategy", "steps", "--save_steps", 1]
    whole = load_file(run("qwen3_0.6b", "sft", base, *flags) / "model.safetensors")
    (tmp_path / "sft").rename(tmp_path / "whole")
    flags += ["--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-1"]
    resumed = run("qwen3_0.6b", "sft", base, *flags, "--resume_changed", "true")
    for name, weight in load_file(resumed / "model.safetensors").items():
        assert torch.equal(weight, whole[name]), name
