"""`rlhf share` of feedback and of a Space, against the Hub on loopback."""

import argparse
import json

import pytest

from rlhf.commands.share import add_arguments, main
from rlhf.data.load import load_rows
from rlhf.feedback.events import Answer, ModelUsed, Ranking, Rating
from rlhf.feedback.store import Store
from rlhf.runs.record import RunRecord


def rlhf_share(*argv) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args([str(word) for word in argv]))


def commits(hub, name: str, kind: str) -> int:
    """Number of commits after the one that makes the repository."""
    return len(hub.repo(name, kind).messages) - 1


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def store(tmp_path):
    """Rankings of eight prompts, a thumb, and a thumb without consent."""
    store = Store(tmp_path / "feedback")
    model = ModelUsed("ppo", "runs/ppo", "1" * 64)
    ann = store.annotator("Ann")
    for i in range(8):
        answers = [Answer(f"answer {j} to {i}", model, j) for j in range(3)]
        ranking = Ranking(asked(f"question {i}"), answers, [0, 1, 2], {}, [0, 1, 2])
        store.append(Ranking(**vars(ranking) | {"annotator": ann, "consent": True}))
    for text, consent in (("fine", True), ("secret worry", False)):
        store.append(Rating(asked(text), "yes", model, {}, 1, "up", consent=consent))
    return store


def test_feedback_is_pushed_once_loaded_and_taken_back(hub, store, capsys):
    push = (store.folder, "--repo", "alice/feedback", "--type", "dataset")
    assert rlhf_share(*push) == 0
    assert "1 events without consent were left behind" in capsys.readouterr().out
    contents = hub.contents("alice/feedback", "datasets")
    assert {"README.md", "train.jsonl", "ratings.jsonl"} <= contents.keys()
    assert not any(b"secret worry" in content for content in contents.values())
    rlhf_share(*push)
    assert "nothing was sent" in capsys.readouterr().out
    assert commits(hub, "alice/feedback", "datasets") == 1

    from datasets import load_dataset

    assert len(load_dataset("alice/feedback", split="train")) == 8
    assert load_dataset("alice/feedback", "ratings", split="train")["label"] == [True]
    # The way of the reward recipe.
    assert len(load_rows("alice/feedback", kinds=("ranking",)).rows) == 8

    # A name without its owner is the same repository, and its snippets load from everywhere.
    rlhf_share(store.folder, "--repo", "feedback", "--type", "dataset")
    assert "nothing was sent" in capsys.readouterr().out
    card = hub.contents("alice/feedback", "datasets")["README.md"].decode()
    assert 'load_dataset("alice/feedback", "rankings"' in card and '"feedback"' not in card

    # Somebody takes the thumb back.
    lines = store.path.read_text().splitlines(keepends=True)
    store.path.write_text("".join(line for line in lines if '"fine"' not in line))
    rlhf_share(*push)
    assert "ratings.jsonl" not in hub.contents("alice/feedback", "datasets")


def test_a_space_is_pushed_with_the_models_that_were_chosen(hub, tmp_path, tokenizer, capsys):
    from rlhf.models.load import save
    from rlhf.models.scratch import new_policy

    for name in ("ppo", "sft"):
        folder = tmp_path / name
        sizes = dict(hidden_size=16, layers=1, heads=2, context=64)
        save(new_policy(tokenizer, model_type="gpt2", **sizes), tokenizer, folder)
        record = RunRecord.begin(name, config={}, seed=0)
        record.status = "done"
        record.save(folder)
    push = ("--repo", "alice/chat", "--space")
    rlhf_share(tmp_path / "ppo", tmp_path / "sft", *push)
    contents = hub.contents("alice/chat", "spaces")
    assert b"serve_folder" in contents["app.py"]
    weights = contents["models/ppo/model.safetensors"]
    assert weights == (tmp_path / "ppo" / "model.safetensors").read_bytes()
    assert json.loads(contents["models.json"]) == {"models": ["models/ppo", "models/sft"]}
    rlhf_share(tmp_path / "ppo", tmp_path / "sft", *push)
    assert commits(hub, "alice/chat", "spaces") == 1
    # A model that is taken out of the Space does not stay there.
    rlhf_share(tmp_path / "ppo", *push)
    names = hub.contents("alice/chat", "spaces").keys()
    assert not any(name.startswith("models/sft/") for name in names)
