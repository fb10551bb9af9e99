"""Runs with real records and a few bytes of weights, from the tokenizer to PPO, for tests of lineage and card."""

import json
from pathlib import Path
from types import SimpleNamespace

from transformers import TrainingArguments

from rlhf.feedback.events import Answer, ModelUsed, Ranking
from rlhf.feedback.store import Store
from rlhf.runs.parents import model_digests
from rlhf.runs.record import DONE
from rlhf.runs.run import Run
from rlhf.runs.settings import ModelSettings

ROWS = "ab" * 32  # stands for the hash of rows


def make_run(
    folder: Path, recipe: str, *, parents=(), data=(), shards: int = 1, content: str = ""
) -> Path:
    """A finished run. parents: (role, path) pairs. data: files that it read. shards: files of weights; 0 is a tokenizer."""
    args = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    run = Run(recipe, ModelSettings(), args)
    run.record.command = f"rlhf {recipe} --output_dir {folder}"
    run.record.config = {"output_dir": str(folder)}
    sources = [{"name": str(name), "rows": 3, "sha256": ROWS} for name in data]
    run.data(SimpleNamespace(sources=sources, warnings=[]))
    for role, path in parents:
        run.parent(role, str(path))
    folder.mkdir(parents=True, exist_ok=True)
    content = content or f"the weights of {folder.name}"
    for number in range(1, shards + 1):
        name = "model.safetensors"
        if shards > 1:
            name = f"model-{number:05}-of-{shards:05}.safetensors"
        (folder / name).write_text(f"{content} {number}")
    (folder / "tokenizer.json").write_text('{"words": "a b"}')
    run.record.weights = model_digests(folder)
    run.record.status = DONE
    run.save()
    return folder


def make_feedback(folder: Path, events: int = 2) -> Path:
    """A feedback store with rankings of two answers."""
    store = Store(folder)
    for number in range(events):
        add_event(store, number)
    return folder


def add_event(store: Store, number: int = 0) -> None:
    """Append one ranking."""
    used = ModelUsed("sft", "runs/sft", "1" * 64)
    answers = [Answer("yes", used, number), Answer("no", used, number)]
    messages = [{"role": "user", "content": f"question {number}"}]
    store.append(Ranking(messages, answers, [0, 1], {}, [0, 1]))


def make_stages(home: Path) -> SimpleNamespace:
    """Tokenizer, base model, SFT, feedback, reward model and PPO in a folder, each with data of its own."""
    (home / "data").mkdir(parents=True)
    files = {}
    for name in ("text.txt", "sft.jsonl", "prompts.jsonl"):
        files[name] = home / "data" / name
        files[name].write_text(json.dumps({"text": f"rows of {name}"}) + "\n")
    tokenizer = make_run(home / "tokenizer", "tokenizer", data=[files["text.txt"]], shards=0)
    base = make_run(
        home / "base", "pretrain", parents=[("tokenizer", tokenizer)], data=[files["text.txt"]]
    )
    sft = make_run(
        home / "sft", "sft", parents=[("base", base)], data=[files["sft.jsonl"]], shards=2
    )
    feedback = make_feedback(home / "feedback")
    reward = make_run(home / "reward", "reward", parents=[("base", sft)], data=[feedback])
    ppo = make_run(
        home / "ppo",
        "ppo",
        parents=[("policy", sft), ("reward", reward)],
        data=[files["prompts.jsonl"]],
    )
    return SimpleNamespace(
        home=home,
        files=files,
        tokenizer=tokenizer,
        base=base,
        sft=sft,
        feedback=feedback,
        reward=reward,
        ppo=ppo,
    )
