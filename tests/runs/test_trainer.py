"""What all trainers share: which checkpoints are saved, and what a resumed one logs."""

import errno
import json
import shutil
import signal

import pytest
import torch

from rlhf.errors import Interrupted
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.run import start
from rlhf.runs.verified_save import checkpoints_of, step_of

from .conftest import FLAGS, tiny_recipe


def steps_saved(folder) -> list[int]:
    return [step_of(path) for path in checkpoints_of(folder)]


def losses(folder) -> list[dict]:
    return [row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]


def as_if_killed(folder, last: int) -> None:
    """Remove what a run that was killed after a checkpoint would not have."""
    for checkpoint in checkpoints_of(folder):
        if step_of(checkpoint) > last:
            shutil.rmtree(checkpoint)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))


def test_weights_that_are_not_finite_do_not_replace_the_last_good_checkpoint(
    tmp_path, failing_tiny, capsys
):
    def overflow(trainer):
        step = trainer.training_step

        def training_step(*args, **kwargs):
            if trainer.state.global_step == 3:
                with torch.no_grad():
                    trainer.model.layer.bias[0] = torch.inf
            return step(*args, **kwargs)

        trainer.training_step = training_step

    said = failing_tiny("--save_total_limit", 1, hook=overflow)
    assert steps_saved(tmp_path / "run") == [2]
    assert f"--resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-2'}" in said


def test_a_resumed_run_saves_and_logs_as_its_own_settings_say(stopped, tiny):
    """transformers goes on with the numbers of the checkpoint."""
    folder = stopped("--logging_steps", 5)
    tiny("--save_steps", 1, "--logging_steps", 1, "--resume_from_checkpoint", "true")
    assert steps_saved(folder) == [2, 4, 5, 6]
    assert [row["step"] for row in losses(folder)] == [5, 6]


def test_a_resumed_run_counts_the_skipped_steps_before_its_checkpoint(tiny, tmp_path):
    def spoil(trainer):
        compute = trainer.compute_loss

        def compute_loss(*args, **kwargs):
            loss = compute(*args, **kwargs)
            return loss * torch.nan if trainer.state.global_step == 3 else loss

        trainer.compute_loss = compute_loss

    folder = tiny("--logging_steps", 3, hook=spoil)
    rows = losses(folder)
    assert [row.get("nonfinite_steps") for row in rows] == [None, 1]
    as_if_killed(folder, last=4)
    tiny("--logging_steps", 3, "--resume_from_checkpoint", "true", hook=spoil)
    assert losses(folder) == rows


@pytest.mark.parametrize("stop", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_save_that_is_asked_for_is_made_where_the_evaluation_is_not_the_best(
    tmp_path, monkeypatch, stop, terminate
):
    """With save_strategy: best an evaluation that is not the best one takes back every other wish."""

    def worse_and_worse(trainer):
        trainer.evaluate = lambda *args, **kwargs: {"eval_loss": trainer.state.global_step}
        step = trainer.training_step

        def training_step(*args, **kwargs):
            if stop and trainer.state.global_step == 2:
                terminate()
            return step(*args, **kwargs)

        trainer.training_step = training_step

    flags = ["--save_strategy", "best", "--eval_strategy", "steps", "--eval_steps", "1"]
    flags += ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss"]
    if not stop:
        flags += ["--checkpoint_minutes", "1e-9"]
    argv = [*FLAGS[: FLAGS.index("--save_strategy")], *flags]
    with pytest.raises(SystemExit) if stop else monkeypatch.context():
        start(tiny_recipe(hook=worse_and_worse), "", ["--output_dir", str(tmp_path / "run"), *argv])
    # Of those by the clock the newest two are kept. The last step is not one of the clock's.
    assert steps_saved(tmp_path / "run") == ([1, 3] if stop else [1, 4, 5])


def test_a_run_that_is_stopped_before_its_first_checkpoint_names_auto(tiny, tmp_path, capsys):
    """As in the sampling of the first rollout, which a signal cuts off."""

    def stop(trainer):
        def training_step(*args, **kwargs):
            raise Interrupted(signal.SIGTERM)

        trainer.training_step = training_step

    with pytest.raises(SystemExit) as left:
        tiny(hook=stop)
    assert left.value.code == 143
    said = capsys.readouterr().err
    assert "there is no checkpoint: start again with" in said
    assert said.strip().endswith("--resume_from_checkpoint auto")
    tiny("--resume_from_checkpoint", "auto")
    assert RunRecord.load(tmp_path / "run").status == "done"


def test_an_error_of_the_disk_says_how_to_continue(failing_tiny):
    def fill(trainer):
        def training_step(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        trainer.training_step = training_step

    said = failing_tiny(hook=fill).strip()
    ending = "free some space, then start the run again with --resume_from_checkpoint auto"
    assert said.endswith(ending)
