"""What is due once per epoch is in a resumed run too, wherever its checkpoint was made."""

import pytest

from rlhf.runs.record import read_jsonl

from .conftest import same_weights

EPOCH = 8  # steps


def rows(folder) -> list[dict]:
    """The rows of metrics.jsonl without times."""
    kept = []
    for row in read_jsonl(folder / "metrics.jsonl"):
        kept.append({k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k})
    return kept


@pytest.mark.parametrize(
    "flags",
    [
        ("--save_steps", 4),
        pytest.param(
            ("--save_steps", 100, "--checkpoint_minutes", 1e-9),  # by the clock, after each step
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_checkpoint_of_the_last_step_of_an_epoch_follows_its_evaluation(tiny, stopped, flags):
    flags = ("--max_steps", 12, "--eval_strategy", "epoch", *flags)
    whole = tiny(*flags, name="whole")
    folder = stopped(*flags, step=EPOCH)
    assert (folder / f"checkpoint-{EPOCH}").is_dir()
    tiny(*flags, "--resume_from_checkpoint", "true")
    assert rows(folder) == rows(whole) and same_weights(folder, whole)
    assert [row["step"] for row in rows(folder) if "eval_loss" in row] == [EPOCH, 12]


@pytest.mark.slow
def test_the_last_step_is_saved_after_its_evaluation(tiny):
    """An evaluation that fails can be made again from there, and the one of the epoch is not lost."""
    folder = tiny("--eval_strategy", "epoch")
    state = (folder / "checkpoint-6" / "trainer_state.json").read_text()
    assert "eval_loss" in state
