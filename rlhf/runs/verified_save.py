"""Saving of a checkpoint such that it is whole or not there, and the turn of old ones to go.

    .saving/checkpoint-N/                  the Trainer writes its files here
    .saving/checkpoint-N/manifest.json     written last, when the others are on the disk
    checkpoint-N/                          the same folder, renamed

What a killed run leaves in `.saving` is removed at the next start (`recover`), or renamed where its manifest says that it
is whole.
"""

from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs import durable
from rlhf.runs.disk import refuses_writes
from rlhf.runs.durable import move_folder, remove_folder, sync
from rlhf.runs.manifest import TRAINER_STATE, Digests, flaw, read_manifest, write_manifest

SAVING = ".saving"
PREFIX = "checkpoint-"
REPLACED, OLD = "replaced-", "old-"  # before the name of a folder in SAVING
# Checkpoints that are kept of those made every few minutes, without save_total_limit.
KEPT_BY_TIME = 2


class VerifiedSave:
    """A checkpoint that a trainer is writing. Every process makes one; only the main process writes here."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.args = trainer.args
        self.step = trainer.state.global_step
        self.root = Path(self.args.output_dir)
        self.target = self.root / f"{PREFIX}{self.step}"
        self.folder = self.root / SAVING / self.target.name
        self.is_main = self.args.process_index == 0
        self.digests = Digests(self.folder)

    def begin(self) -> None:
        """Make the folder that the Trainer writes into."""
        if self.is_main:
            remove_folder(self.root / SAVING)
            self.folder.mkdir(parents=True)
        self._wait()

    def next_file(self) -> None:
        """Note that the Trainer goes on to its next file. Those before are hashed meanwhile.

        On several processes the files of the others may be half written: there all are hashed at the end.
        """
        durable.boundary(self.folder)
        if self.args.world_size == 1:
            self.digests.begin()

    def complete(self) -> None:
        """Bring the files to the disk, write the manifest, and give the folder its name."""
        self._wait()  # until every process has written its files
        self._name_best_checkpoint()
        if self.is_main:
            self.digests.begin()
            self.digests.sync()
            by_time = self.trainer.asked_by_time == self.step
            write_manifest(self.digests, self.trainer.facts, step=self.step, by_time=by_time)
            self._put_in_place()
            rotate(
                self.root,
                current=self.target,
                best=self.trainer.state.best_model_checkpoint,
                limit=self.args.save_total_limit,
            )
        self._wait()
        self.trainer.last_saved_step = self.step

    def abandon(self, error: Exception) -> None:
        """Remove what was written, after an error. UserError for a disk that takes no more."""
        self.digests.close()
        if self.is_main:
            recover(self.root)
        if refuses_writes(error):
            raise UserError(
                f"output_dir {self.root}: the disk is full or takes no writes, and {self.target.name} was not saved: "
                f"free some space, then {how_to_continue(self.root)}"
            ) from error

    def _wait(self) -> None:
        self.trainer.accelerator.wait_for_everyone()

    def _name_best_checkpoint(self) -> None:
        """Correct the path of the best checkpoint in the Trainer's state: that of this save is about to be renamed."""
        state = self.trainer.state
        if state.best_model_checkpoint is None:
            return
        if Path(state.best_model_checkpoint) != self.folder:
            return
        state.best_model_checkpoint = str(self.target)
        path = self.folder / TRAINER_STATE
        if self.is_main and path.exists():
            state.save_to_json(str(path))
            self.digests.restart(path)

    def _put_in_place(self) -> None:
        """Rename the folder. One of this name, from before a resume, is kept until then."""
        if self.target.exists():
            move_folder(self.target, self.root / SAVING / f"{REPLACED}{self.target.name}")
        move_folder(self.folder, self.target)
        remove_folder(self.root / SAVING)
        self.digests.close()


def recover(root: Path) -> None:
    """Rename what a killed run has saved to its end, and remove the rest of `.saving`."""
    saving = root / SAVING
    if not saving.is_dir():
        return
    for folder in saving.glob(f"{PREFIX}*"):
        target = root / folder.name
        if not target.exists() and not flaw(folder):
            sync(folder)
            move_folder(folder, target)
    for folder in saving.glob(f"{REPLACED}{PREFIX}*"):
        target = root / folder.name.removeprefix(REPLACED)
        if not target.exists():
            move_folder(folder, target)
    remove_folder(saving)


def checkpoints_of(root: Path) -> list[Path]:
    """The folders checkpoint-N of a run, the oldest step first."""
    folders = []
    for path in root.glob(f"{PREFIX}*"):
        if path.is_dir() and path.name.removeprefix(PREFIX).isdecimal():
            folders.append(path)
    return sorted(folders, key=step_of)


def step_of(checkpoint: str | Path) -> int:
    """The N of a folder checkpoint-N."""
    return int(Path(checkpoint).name.removeprefix(PREFIX))


def rotate(root: Path, *, current: Path, best: str | None, limit: int | None) -> None:
    """Remove the checkpoints whose turn is over. The current one, which is whole, and the best one stay.

    limit: save_total_limit. None keeps all but those made by time, of which the newest two stay.
    """
    others = []
    for path in checkpoints_of(root):
        is_best = best is not None and path.resolve() == Path(best).resolve()
        if path != current and not is_best:
            others.append(path)
    # Later steps are from before a resume: they are made again, and go first.
    others.sort(key=lambda path: (step_of(path) < step_of(current), step_of(path)))
    if limit is None:
        others = [path for path in others if _is_by_time(path)]
        excess = len(others) + int(_is_by_time(current)) - KEPT_BY_TIME
    else:
        excess = len(checkpoints_of(root)) - limit
    for path in others[: max(excess, 0)]:
        # Renamed first, so that a kill does not leave half of it under its name.
        trash = root / SAVING / f"{OLD}{path.name}"
        trash.parent.mkdir(exist_ok=True)
        move_folder(path, trash)
        remove_folder(trash.parent)


def _is_by_time(checkpoint: Path) -> bool:
    return bool(read_manifest(checkpoint).get("by_time"))


def how_to_continue(root: Path) -> str:
    """Advice for after a run that stopped: from which checkpoint it goes on, or that it starts again."""
    folders = checkpoints_of(root)
    if not folders:
        return "start the run again with --resume_from_checkpoint auto"
    return f"continue from {folders[-1].name} with --resume_from_checkpoint true"
