"""SFT, reward model and PPO of the models before the Transformer, one from the other, and SFT that is resumed."""

import json
import shutil
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file

from rlhf.__main__ import main as command
from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.models.load import load_reward_model, save
from rlhf.models.scratch import new_baseline
from rlhf.runs.record import RunRecord
from rlhf.runs.run import start
from rlhf.serving.catalogue import find_models
from rlhf.serving.engine.engine import Engine

LETTERS = "a b c d e f g h".split()
PROMPTS = [f"{first} {second}" for first in LETTERS for second in LETTERS[:4]]
QUICK = "--use_cpu --report_to none --eval_fraction 0.25 --per_device_train_batch_size 4".split()
COMPLETIONS = ["c c c", "c d c", "d d c"]


@pytest.fixture
def base(tokenizer, tmp_path):
    """f(model type): the folder of a language model with random weights."""

    def base(kind: str):
        torch.manual_seed(0)
        sizes = dict(hidden_size=16, layers=2, order=5, dropout=0.2)
        save(new_baseline(tokenizer, kind, **sizes), tokenizer, tmp_path / "base")
        return tmp_path / "base"

    return base


@pytest.fixture
def run(recipe_module, write, tmp_path):
    """f(recipe, rows, flags): the folder of its run."""

    def run(recipe: str, rows: list[dict], *flags, name: str = ""):
        folder = tmp_path / (name or recipe)
        data = write(f"{recipe}.jsonl", rows)
        names = ["--dataset_name", data, "--output_dir", folder]
        start(recipe_module(recipe).main, "", [*QUICK, *map(str, [*names, *flags])])
        return folder

    return run


def demonstrations() -> list[dict]:
    """The completion is the prompt with its letters swapped. Lengths differ, so that batches have padding."""
    rows = []
    for i, prompt in enumerate(PROMPTS):
        first, second = prompt.split()
        rows.append({"prompt": prompt, "completion": f"{second} {first}" + i % 3 * " c"})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_sft_resumed_in_the_middle_of_an_epoch_ends_the_same(run, base, kind):
    flags = ["--model_name_or_path", base(kind), *"--num_train_epochs 2 --save_steps 4".split()]
    flags += "--save_strategy steps --save_total_limit 9 --learning_rate 1e-2".split()
    folder = run("sft", demonstrations(), *flags)
    whole = load_file(folder / "model.safetensors")
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["epoch"] % 1 and state["max_steps"] > 4
    before = load_file(folder / "checkpoint-4" / "model.safetensors")
    assert not all(torch.equal(whole[name], before[name]) for name in whole)
    # as a kill after the first checkpoint leaves it
    for path in folder.glob("checkpoint-*"):
        if path.name != "checkpoint-4":
            shutil.rmtree(path)
    (folder / "model.safetensors").unlink()
    record = folder / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "running"}))
    run("sft", demonstrations(), *flags, "--resume_from_checkpoint", "true")
    assert RunRecord.load(folder).parts[-1]["from_step"] == 4
    resumed = load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_policy_reward_and_value_model_are_of_one_kind(run, base, tmp_path, kind):
    sft = run("sft", demonstrations(), "--model_name_or_path", base(kind), "--max_steps", 2)
    rows = [{"prompt": x, "completions": COMPLETIONS, "ranks": [0, 1, 2]} for x in PROMPTS]
    learn = ["--max_steps", 12, "--learning_rate", 5e-2]
    reward = run("reward", rows, "--model_name_or_path", sft, *learn)
    models = ["--model_name_or_path", sft, "--reward_model_path", reward]
    episodes = "--total_episodes 32 --rollout_batch_size 16 --max_completion_length 5".split()
    prompts = [{"prompt": x} for x in PROMPTS]
    ppo = run("ppo", prompts, *models, *episodes, "--value_model", "reward_model")

    # The value model started as the reward model, and has learned; the policy too.
    value_model = load_reward_model(str(ppo / "value_model")).state_dict()
    for name, value in load_reward_model(str(reward)).state_dict().items():
        assert not torch.equal(value, value_model[name]), name
    policy, start_of_policy = (load_file(x / "model.safetensors") for x in (ppo, sft))
    assert all(not torch.equal(policy[name], start_of_policy[name]) for name in policy)

    served = find_models(tmp_path)
    with closing(Engine(served["causal"], reward_runs=served["reward"])) as engine:
        messages = [{"role": "user", "content": "a b"}]
        (name,) = served["reward"]
        scores = engine.score(name, messages, COMPLETIONS)
    scorer = RewardModelScorer.load(str(reward))
    expected = scorer(ScoringBatch(["a b"] * 3, COMPLETIONS)).tolist()
    assert scores == pytest.approx(expected, abs=1e-5) and scores == sorted(scores, reverse=True)

    flags = ["--prompts", str(tmp_path / "ppo.jsonl"), "--limit", "4"]
    assert command(["report", str(sft), str(ppo), *flags, "--reward_model", str(reward)]) == 0
    report = json.loads((ppo / "report" / "report.json").read_text())
    assert all(entry["metrics"]["score_reward_model"]["n"] == 4 for entry in report["runs"])
