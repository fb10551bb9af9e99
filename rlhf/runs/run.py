"""The frame around every recipe: settings, errors, processes, the run folder and its record.

    def main(settings: Settings, args: SFTConfig) -> None:
        with recording("sft", settings, args) as run:
            ...

    if __name__ == "__main__":
        start(main, __doc__)

The dataclasses in the signature of `main` are the keys of the YAML and the flags of the command line.
"""

import json
import os
import sys
import time
import typing
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path

from transformers import TrainerCallback

from rlhf.data.templates import fixed_date
from rlhf.errors import Interrupted, UserError
from rlhf.models.snapshots import hub_commit, split_revision
from rlhf.runs.checkpoint_clock import CheckpointClock, minutes_between_checkpoints
from rlhf.runs.checkpoints import check_best_checkpoint, checkpoint_to_resume, stop_if_finished
from rlhf.runs.disk import check_free_disk
from rlhf.runs.durable import remove_folder, write_text
from rlhf.runs.ending import (
    after_failed_evaluation,
    after_signal,
    cause_of,
    leave,
    report,
    with_process,
)
from rlhf.runs.epoch_end import SaveAfterEpoch
from rlhf.runs.failures import describe, watch_others, write_failure
from rlhf.runs.inputs import check_inputs, check_same_rows
from rlhf.runs.layouts import (
    check_layout,
    describe_layout,
    leave_together,
    patient_group,
    wait_for_all,
)
from rlhf.runs.output_folder import (
    check_output_dir,
    check_shared_folder,
    claim,
    has_only_early_files,
    remove_early_files,
)
from rlhf.runs.packages import check_packages
from rlhf.runs.parents import (
    data_entry,
    feedback_entry,
    history,
    model_digests,
    parent_entry,
    sampling_record,
)
from rlhf.runs.precision import precision_of_resumed
from rlhf.runs.processes import (
    check_world,
    gpu_name,
    is_launched,
    keep_freed_memory,
    launcher,
    meet_in_new_store,
    on_main,
    peak_gpu_memory_gb,
    peak_memory_gb,
    use_all_cores,
)
from rlhf.runs.progress import RunProgress, plot_curves
from rlhf.runs.record import (
    DONE,
    EVALUATION_FAILED,
    FAILED,
    INTERRUPTED,
    RECORD,
    TRAINED,
    RunRecord,
    read_object,
)
from rlhf.runs.same_run import check_same_data, check_same_models, check_same_run
from rlhf.runs.settings import changed_settings, parse
from rlhf.runs.signals import SIGNALS, StopAtSignal, end_with_launcher
from rlhf.runs.verified_save import checkpoints_of, step_of

SAMPLES = 8  # held-out rows that samples.jsonl keeps


def start(main, description: str, argv: list[str] | None = None) -> None:
    """Parse the settings and call `main`.

    An error that a user can repair becomes one line and exit code 2, a signal one line and 128 + its number. Other errors
    are raised, with a traceback. Where several processes run, a failing one ends at once, and does not wait for others.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    parent = launcher()
    with SIGNALS.listening():
        if parent is not None:
            end_with_launcher(parent)
        try:
            hints = typing.get_type_hints(main)
            hints.pop("return", None)
            meet_in_new_store()
            main(*parse(list(hints.values()), description, argv))
        except (Exception, Interrupted, KeyboardInterrupt) as error:
            code = report(error)
            # Leaving the group of processes in order would mean to wait for the others.
            if is_launched():
                leave(code, error)
            if code == 1:
                raise  # Python prints the traceback
            raise SystemExit(code) from None
    if is_launched():
        leave_together()


@contextmanager
def recording(recipe: str, settings, args):
    """Open the run folder and keep its record: status, seconds, memory, curves and model card."""
    check_world(args.world_size)
    check_layout(args)
    if args.world_size > 1:
        patient_group()  # now, while none is waiting for another
    check_packages(args)
    stop_if_finished(args, {"recipe": recipe, "config": changed_settings(settings, args)})
    check_inputs(settings)
    check_best_checkpoint(args)
    with ExitStack() as stack:
        on_main(partial(claim, stack, args.output_dir))
        args.resume_from_checkpoint = checkpoint_to_resume(args)
        # Only in the first process: the others could find what it has written meanwhile.
        on_main(partial(check_output_dir, args.output_dir, args.resume_from_checkpoint))
        if minutes_between_checkpoints(settings, args) or args.save_strategy != "no":
            check_shared_folder(args)
        day = _template_date(args)
        run = Run(recipe, settings, args)
        # The record of the run that is resumed is about to be replaced.
        changes = check_same_run(
            args.resume_from_checkpoint, run.facts(), accept=run.accepts_changes()
        )
        run.record.template_date = day.isoformat()
        _hide_progress_bars()
        run.say(f"{recipe}: {_prepare_processes(args)} -> {run.folder}")
        if changes:
            run.say(changes)
        stack.callback(run.watch())
        try:
            run.save()  # "running", for whoever looks meanwhile
            with fixed_date(day):
                yield run
            run.finish()
        except BaseException as error:
            raise run.ended_by(error) from error.__cause__


def _template_date(args) -> date:
    """The day that chat templates write as today: that of the run that is resumed, else today's on the main process."""
    checkpoint = args.resume_from_checkpoint

    def choose() -> str:
        today = date.today().isoformat()
        if checkpoint:
            return read_object(Path(checkpoint).parent / RECORD).get("template_date") or today
        return today

    return date.fromisoformat(on_main(choose))  # of all processes: midnight may be between two


class Run:
    """The run under way. Only its main process writes and prints."""

    def __init__(self, recipe: str, settings, args):
        self.settings, self.args = settings, args
        self.folder = Path(args.output_dir)
        self.main = args.process_index == 0
        self.started = time.time()
        self.trainer = None  # that trains or has trained
        self.weights_at_end: list = []
        self.keeps_best_only = False
        config = changed_settings(settings, args)
        self.record = RunRecord.begin(recipe, config=config, seed=args.seed)
        self._continue_record()
        # So that the processor time of this process is added to that of the parts before.
        self.cpu_offset = self.record.cpu_seconds - time.process_time()
        # Read now: the record of a resumed run is about to be replaced.
        self.record.precision = precision_of_resumed(args.resume_from_checkpoint)

    def _continue_record(self) -> None:
        """Keep what the parts before a resume knew."""
        checkpoint = self.args.resume_from_checkpoint
        if not checkpoint or Path(checkpoint).resolve().parent != self.folder.resolve():
            return
        if not read_object(self.folder / RECORD).get("recipe"):
            return  # the folder has lost its record
        before = RunRecord.load(self.folder)
        step = step_of(checkpoint)
        self.record.continue_from(before, step=step)
        is_trained = before.status in (TRAINED, EVALUATION_FAILED) and before.steps == step
        if is_trained and not self.accepts_changes():
            self.record.status = TRAINED  # no step is made, and an error costs the evaluation only

    def data(self, splits) -> None:
        """Record the files that were read (`data.splits.Splits`) and print their warnings.

        UserError where the processes have read different rows.
        """
        check_same_rows(splits.sources)
        without_licence = set()
        for source in splits.sources:
            entry = data_entry(source) if self.main else source
            self.record.data.append(entry)
            if self.main:
                self._feedback(source["name"])
                self._sampled(source["name"])
            if entry.get("license") == "":
                without_licence.add(source["name"])
        # Once, also where both splits are read from it.
        for name in sorted(without_licence):
            self.say(
                f"warning: {name} states no licence on the Hub: look for its terms before you share"
            )
        for warning in splits.warnings:
            self.say(warning)

    def _feedback(self, name: str) -> None:
        """Record the feedback store behind a source of rows, if there is one, as a parent."""
        parents = self.record.parents
        entry = feedback_entry(name)
        # The evaluation rows may come from the same store.
        if entry and entry not in parents.values():
            count = sum(role.startswith("feedback") for role in parents)
            parents[f"feedback_{count + 1}" if count else "feedback"] = entry

    def _sampled(self, name: str) -> None:
        """Record the models that wrote and scored the rows of a file, where `rlhf sample` has made it, as parents."""
        made_by = sampling_record(name)
        for role, entry in made_by.get("models", {}).items():
            self.record.parents[f"sampled_{role}"] = entry
        self.record.ancestors |= made_by.get("ancestors", {})

    def parent(self, role: str, path: str | None, *, revision: str | None = None) -> None:
        """Record a model that the run starts from, and what that came from.

        revision: of the Hub, where the commit that was loaded is recorded.
        """
        if not path or not self.main:
            return
        commit = hub_commit(path, revision)
        if commit:
            path, revision = split_revision(path)[0], commit
        entry = parent_entry(path, revision=revision)
        self.record.parents[role] = entry
        self.record.ancestors |= history({role: entry}, self.folder)

    def facts(self) -> dict:
        """The facts by which a checkpoint knows its run, so that no other run resumes from it."""
        return {
            "recipe": self.record.recipe,
            "config": self.record.config,
            "data": self.record.data,
            "models": self._digests_of_models(),
            "processes": self.args.world_size,
        }

    def _digests_of_models(self) -> dict[str, str]:
        """role -> sha256 of the weights, of the models that the run starts from. {} outside the main process."""
        digests = {}
        for role, entry in self.record.parents.items():
            # A feedback store is data.
            if not role.startswith("feedback") and entry.get("sha256"):
                digests[role] = entry["sha256"]
        return digests

    def train(self, trainer, save: Callable[[], None]) -> None:
        """Train, from the checkpoint that the run resumes from if it does, and save the model.

        The model is saved before it is evaluated, so that no later error can lose it.

        save: writes the trained model into the run folder. Called in every process.
        """
        self.prepare_checkpoints(trainer)
        self.trainer = trainer
        trainer.add_callback(StopAtSignal(trainer.steps_between_checkpoints))
        trainer.add_callback(SaveAfterEpoch())
        trainer.add_callback(RecordAtCheckpoint(self))
        if self.args.load_best_model_at_end and self.args.save_total_limit == 1:
            # The Trainer would remove the last checkpoint, from which a failed evaluation is made again.
            self.args.save_total_limit, self.keeps_best_only = 2, True
        self.save()  # with the numbers of before the training
        with SIGNALS.held():
            self._train(trainer)
            self.record.steps = trainer.state.global_step
            self.weights_at_end = versions_of_weights(trainer.model)
            save()
            self.record.status = TRAINED
            self.measure()
            self.save()

    def _train(self, trainer) -> None:
        """Train. Sampling that a signal has cut off ends here, with a checkpoint of the last step."""
        try:
            trainer.train(resume_from_checkpoint=self.args.resume_from_checkpoint)
        except Interrupted:
            self.record.steps = trainer.state.global_step
            if self.record.steps and not self.last_checkpoint().is_dir():
                trainer._save_checkpoint(trainer.model, None)
            raise
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, RunProgress):
                    callback.close()

    def last_checkpoint(self) -> Path:
        """The folder of a checkpoint of the last step, which need not be there."""
        return self.folder / f"checkpoint-{self.record.steps}"

    def finish(self) -> None:
        """End a run in which nothing has failed: its curves and card are written, and then the record says done."""
        SIGNALS.check()
        if self.main:
            plot_curves(self.folder)  # first: nothing is added to a run that is done
        wait_for_all()  # another process may still fail
        if self.main:
            self.record.weights = model_digests(self.folder)
        self.measure()
        self.save()
        with SIGNALS.held_back():
            if self.main:
                from rlhf.runs.card import write_card

                write_card(self.folder, status=DONE)
            # Last: nobody finishes a run that is done.
            status, self.record.status = self.record.status, DONE
            try:
                self.save()
            except BaseException:
                self.record.status = status
                raise
            if self.main:
                self._remove_last_checkpoint()
                self.show()

    def _remove_last_checkpoint(self) -> None:
        """Keep the best checkpoint alone, where save_total_limit is 1."""
        best = self.trainer.state.best_model_checkpoint if self.keeps_best_only else None
        if best is None:
            return
        for checkpoint in checkpoints_of(self.folder):
            if checkpoint.resolve() != Path(best).resolve():
                remove_folder(checkpoint)

    def ended_by(self, error: BaseException) -> BaseException:
        """Record what ended the run, and return the error to raise: with one line where the cause is known."""
        with SIGNALS.held_back():
            ending = cause_of(error, self)
            status = self.record.status
            if isinstance(ending, Interrupted):
                ending.message = after_signal(self)
                self.record.status = TRAINED if status == TRAINED else INTERRUPTED
            else:
                self.record.status = EVALUATION_FAILED if status == TRAINED else FAILED
                ending.folder = self.folder
                if self.args.world_size > 1:
                    write_failure(self.folder, self.args.process_index, ending)
            self.record.error = with_process(describe(ending), self.args)
            if self.record.status == EVALUATION_FAILED and self.main:
                ending.notes = [after_failed_evaluation(self)]
            self.measure()
            self._save_at_end()
            if self._was_refused(ending):
                remove_early_files(self.folder)
        return ending

    def _was_refused(self, ending: BaseException) -> bool:
        """True for a run that an error of the user has ended before its training: there is nothing to look at.

        Where there are several processes, the others read in the folder what has ended the run.
        """
        is_alone = self.main and self.args.world_size == 1
        began = self.trainer is not None or self.args.resume_from_checkpoint
        if not is_alone or began or not isinstance(ending, UserError):
            return False
        return has_only_early_files(self.folder)

    def can_save_last_step(self) -> bool:
        """True if the trainer still holds the weights of its last step."""
        if self.trainer is None or self.args.world_size > 1 or self.args.load_best_model_at_end:
            return False
        return self.weights_at_end == versions_of_weights(self.trainer.model)

    def _save_at_end(self) -> None:
        """Write run.json. Where the disk takes no more, the error that ends the run is told and not this one."""
        try:
            self.save()
        except OSError as error:
            self.say(f"{self.folder / RECORD} cannot be written: {error.strerror}")

    def watch(self) -> Callable[[], None]:
        """Watch for errors of other processes, and return the function that ends this."""
        if self.args.world_size == 1:
            return lambda: None

        def ends_this(message: str) -> None:
            self.record.status = EVALUATION_FAILED if self.record.status == TRAINED else FAILED
            self.record.error = message
            self._save_at_end()
            if self.main:
                print(f"error: {message}", file=sys.stderr)

        return watch_others(self.folder, self.args.process_index, ends_this).set

    def accepts_changes(self) -> bool:
        """True if the run may resume with other settings or data than those of the checkpoint."""
        return getattr(self.settings, "resume_changed", False)

    def prepare_checkpoints(self, trainer) -> None:
        """Check what a resumed run has read, and the room on the disk. Let the trainer save by the clock."""
        args = self.args
        trainer.facts = self.facts()
        options = {"accept": self.accepts_changes()}
        checkpoint, models = args.resume_from_checkpoint, trainer.facts["models"]
        changes = [
            check_same_data(checkpoint, self.record.data, **options),
            on_main(partial(check_same_models, checkpoint, models, **options)),
        ]
        for line in filter(None, changes):
            self.say(line)
        minutes = minutes_between_checkpoints(self.settings, args)
        with_checkpoints = args.save_strategy != "no" or minutes > 0
        warning = check_free_disk(trainer.model, args, with_checkpoints=with_checkpoints)
        if warning:
            self.say(warning)
        if minutes:
            trainer.add_callback(CheckpointClock(trainer, minutes))

    def save_model(self, trainer, tokenizer) -> None:
        """Write the model of a trainer into the run folder, from the main process."""
        from rlhf.models.load import save

        if self.main:
            save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, self.folder)

    def best_checkpoint(self, trainer) -> None:
        """Record and print which checkpoint the trained model is, after a run with load_best_model_at_end."""
        args, state = trainer.args, trainer.state
        if not args.load_best_model_at_end:
            return
        if state.best_model_checkpoint is None:
            self.say(
                f"no checkpoint has a finite {args.metric_for_best_model}: the last weights are kept"
            )
            return
        step = step_of(state.best_model_checkpoint)
        self.metrics({"best_step": step})
        self.say(
            f"best of the checkpoints by {args.metric_for_best_model}: step {step}, {state.best_metric:.4g}"
        )

    def metrics(self, metrics: dict) -> None:
        """Record final numbers; floats are rounded to six digits."""
        for name, value in metrics.items():
            if isinstance(value, float):
                value = round(value, 6)
            self.record.metrics[name] = value

    def samples(self, rows: list[dict]) -> None:
        """Write samples.jsonl: a few held-out rows with their predictions, for the card and to try in the app."""
        step = max(1, len(rows) // SAMPLES)
        self.write("samples.jsonl", rows[::step][:SAMPLES])

    def write(self, name: str, content) -> None:
        """Write a file of the run folder: one row per line if the name ends in .jsonl, else any JSON."""
        if not self.main:
            return
        if name.endswith(".jsonl"):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
            text = "".join(lines)
        else:
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_text(self.folder / name, text)

    def say(self, text: str) -> None:
        """Print a line."""
        if self.main:
            print(text, flush=True)

    def save(self) -> None:
        """Write run.json."""
        if self.main:
            self.record.save(self.folder)

    def measure(self) -> None:
        """Record the times, and the most memory that this process has had, and on a GPU its tensors."""
        record = self.record
        record.set_seconds(round(time.time() - self.started, 1))
        record.cpu_seconds = round(self.cpu_offset + time.process_time(), 1)
        record.peak_memory_gb = max(record.peak_memory_gb, round(peak_memory_gb(), 3))
        on_gpu = peak_gpu_memory_gb(self.args.device)
        if on_gpu is not None:
            record.machine["gpu"] = gpu_name(self.args.device)
            record.peak_gpu_memory_gb = max(record.peak_gpu_memory_gb or 0.0, round(on_gpu, 3))

    def show(self) -> None:
        """Print the last line of the run."""
        record = self.record
        memory = f"{record.peak_memory_gb:.2f} GB"
        if record.peak_gpu_memory_gb is not None:
            memory += f", {record.peak_gpu_memory_gb:.2f} GB on the GPU"
        numbers = []
        for name, value in record.metrics.items():
            if isinstance(value, float):
                numbers.append(f"{name} {value:.4g}")
            elif isinstance(value, int):  # reports and names are not for one line
                numbers.append(f"{name} {value}")
        self.say(f"{record.recipe}: {record.seconds:.0f} s, {memory}; {', '.join(numbers)}")


class RecordAtCheckpoint(TrainerCallback):
    """Writes run.json with each checkpoint, so that a killed run has its time and memory."""

    def __init__(self, run: Run):
        self.run = run

    def on_save(self, args, state, control, **kwargs):
        if self.run.main:
            self.run.record.steps = state.global_step
            self.run.measure()
            self.run.save()


def versions_of_weights(model) -> list[tuple[int, int]]:
    """Numbers that differ once any weight is replaced, or changed in place."""
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]


def _hide_progress_bars() -> None:
    """Switch off the bars of other libraries: the training has the only one."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    datasets.disable_progress_bars()


def _prepare_processes(args) -> str:
    """Set threads and memory for training on a CPU. Returns a description of the processes."""
    description = describe_layout(args)
    if args.device.type != "cpu":
        return description
    keep_freed_memory()
    # Set by the launcher where there are several machines.
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    threads = use_all_cores(local_processes)
    return f"{description}, {threads} threads each"
