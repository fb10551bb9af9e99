"""`rlhf finish RUN`: evaluate a run that is trained, and write its plots and card, where that has failed or was cut off.

The recipe runs again with the settings of its record, resumed from the checkpoint of its last step. No step is made. If the
run was started with `push_to_hub: true`, it is pushed then, as it would have been.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.commands.recipes import find_scripts, run_script
from rlhf.errors import UserError
from rlhf.hub.recording import plan_of, push_finished, push_flags
from rlhf.runs.manifest import TRAINER_STATE
from rlhf.runs.record import DONE, EVALUATION_FAILED, RECORD, TRAINED, RunRecord, read_object
from rlhf.runs.verified_save import checkpoints_of, step_of

DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
# Settings of a record that the command sets again.
SET_HERE = ("output_dir", "resume_from_checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the folder of the run")


def main(args: argparse.Namespace) -> int:
    folder = Path(args.run)
    record = read_record(folder)
    push = plan_of(folder)
    if record.status == DONE and push is not None:
        push_finished(folder, push)
        return 0
    if record.status == DONE:
        print(f"{folder} is finished: nothing to do")
        return 0
    checkpoint = last_checkpoint(folder, record)
    script = find_scripts().get(record.recipe)
    if script is None or not script.is_recipe:
        raise UserError(f"{folder} was made by {record.recipe!r}, which is not a recipe here")
    check_paths(record)
    with settings_file(record.config) as path:
        flags = ["--output_dir", str(folder), "--resume_from_checkpoint", str(checkpoint)]
        if push is not None:
            flags += push_flags(push)
        return run_script(script, ["--config", str(path), *flags])


def read_record(folder: Path) -> RunRecord:
    """The record of a run. UserError where the folder holds none."""
    if not read_object(folder / RECORD).get("recipe"):
        raise UserError(f"{folder} holds no readable run.json: give the output_dir of a run")
    return RunRecord.load(folder)


def last_checkpoint(folder: Path, record: RunRecord) -> Path:
    """The checkpoint of the last step. UserError where there is none, so that steps would have to be made."""
    checkpoints = checkpoints_of(folder)
    is_trained = record.status in (TRAINED, EVALUATION_FAILED)
    again = f"continue with its own command and --resume_from_checkpoint true: {record.command}"
    if not checkpoints:
        if is_trained:
            raise UserError(
                f"{folder} is trained, and its model can be used, but there is no checkpoint to evaluate it from: "
                "try it with `rlhf predict`, `rlhf report` or `rlhf chat`"
            )
        raise UserError(
            f"{folder} is not trained to the end, and holds no checkpoint: start it again"
        )
    newest = checkpoints[-1]
    if is_trained and step_of(newest) == record.steps:
        return newest
    state = read_object(newest / TRAINER_STATE)
    if has_ended(state):
        return newest
    steps = state.get("max_steps", "?")
    raise UserError(
        f"the newest checkpoint of {folder} is of step {step_of(newest)} of {steps}: {again}"
    )


def check_paths(record: RunRecord) -> None:
    """UserError where a file or a model that the run has read is missing: a record keeps paths as they were given."""
    names = [entry["name"] for entry in record.data if Path(entry["name"]).suffix in DATA_FILES]
    # What was a folder has a digest and no commit. Others are of the Hub.
    for entry in record.parents.values():
        if "sha256" in entry and "revision" not in entry:
            names.append(entry["name"])
    for name in names:
        if not Path(name).exists():
            raise UserError(
                f"{name}, which the run has read, is missing: put it back, or start this command in the folder in which the "
                "run was started, from which its paths are counted"
            )


def has_ended(state: dict) -> bool:
    """True of the Trainer's state at its last step, also where an early stop made it the last."""
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
    stopped = control.get("args", {}).get("should_training_stop", False)
    return bool(stopped) or 0 < state.get("max_steps", 0) <= state.get("global_step", 0)


@contextmanager
def settings_file(config: dict) -> Iterator[Path]:
    """The settings of a record as a YAML file, for the time of the block.

    They are the `defaults` of an empty file: a record holds what the library derives from the settings too, such as do_eval,
    which is passed over there and would be refused as a key of the run.
    """
    settings = {name: value for name, value in config.items() if name not in SET_HERE}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "finish.yaml"
        path.write_text("defaults: record.yaml", encoding="utf-8")
        path.with_name("record.yaml").write_text(
            json.dumps(settings), encoding="utf-8"
        )  # JSON is YAML
        yield path
