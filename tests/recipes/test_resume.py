"""Resuming a recipe: from the newest whole checkpoint, never on other data or settings, and never twice."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORDS = "a b c d e f g h good bad".split()
TINY = (
    "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 32 --max_length 16 --report_to none "
    "--disable_tqdm true --eval_fraction 0.2 --eval_strategy no --save_strategy steps --save_steps 2 --max_steps 6 "
    "--save_total_limit 4 --per_device_train_batch_size 4 --learning_rate 0.05"
).split()


@pytest.fixture
def train(trainer_of, write):
    rows = []
    for first in "abcdefgh":
        for second in "abcd":
            word = "good" if second in "ab" else "bad"
            rows.append({"text": f"{first} {second} {word}", "label": word})
    data = write("rows.jsonl", rows)
    run = trainer_of("classification", WORDS, [*TINY, "--dataset_name", data])
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def as_if_killed(folder: Path) -> dict[str, torch.Tensor]:
    """Leave the folder as a kill after the last checkpoint does. Returns the weights of the finished run."""
    whole = weights(folder)
    (folder / "model.safetensors").unlink()
    path = folder / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": "running"}))
    return whole


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_a_finished_run_is_not_trained_again(train, capsys):
    folder = train()
    before = {}
    for path in folder.rglob("*"):
        before[path] = (path.stat().st_mtime_ns, path.stat().st_size)
    with pytest.raises(SystemExit) as left:
        train("--resume_from_checkpoint", "true")
    assert left.value.code == 0 and "is finished" in capsys.readouterr().out
    for path in folder.rglob("*"):
        assert before.pop(path) == (path.stat().st_mtime_ns, path.stat().st_size), path
    assert before == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rng_state.pth", "missing"),
        pytest.param("optimizer.pt", "missing", marks=pytest.mark.slow),
        pytest.param("model.safetensors", "flipped", marks=pytest.mark.slow),
        pytest.param("model.safetensors", "cut", marks=pytest.mark.slow),
        pytest.param("trainer_state.json", "missing", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_changes_nothing_of_the_result(train, capsys, name, kind):
    folder = train()
    whole = as_if_killed(folder)
    for path in (folder / "checkpoint-6").iterdir():
        path.unlink()  # an empty folder
    damage(folder / "checkpoint-4" / name, kind)
    train("--resume_from_checkpoint", "true")
    said = capsys.readouterr().out
    assert "checkpoint-6 is passed over: the folder is empty" in said
    assert "checkpoint-4 is passed over" in said and name in said
    assert same(whole, weights(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gradient_accumulation_steps", "2"], "gradient_accumulation_steps 2 (was its default)"),
        (["--seed", "3"], "seed 3 (was its default)"),
    ],
)
def test_another_run_does_not_go_on_from_a_checkpoint(train, failing, flags, said):
    folder = train()
    as_if_killed(folder)
    assert said in failing("--resume_from_checkpoint", "true", *flags)


@pytest.mark.slow
def test_other_rows_do_not_go_on_from_a_checkpoint(train, failing, write):
    folder = train()
    as_if_killed(folder)
    rows = [{"text": f"{word} a", "label": label} for word in "abcdefgh" for label in WORDS[-2:]]
    other = write("other.jsonl", rows)
    said = failing("--resume_from_checkpoint", "true", "--dataset_name", other)
    assert "other data" in said and "other.jsonl with 16 rows" in said
