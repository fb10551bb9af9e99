"""The part that all trainers of the recipes share: verified checkpoints, logs that go on, steps that are not finite."""

from transformers.trainer_utils import SaveStrategy

from rlhf.runs.checkpoints import best_of
from rlhf.runs.log_state import LogState
from rlhf.runs.nonfinite import NonFiniteGuard
from rlhf.runs.verified_save import VerifiedSave


class RunTrainer(NonFiniteGuard, LogState):
    """Mixin for a transformers.Trainer that a recipe runs, named first: `class RewardTrainer(RunTrainer, Trainer)`.

    facts: what identifies the run that trains (`Run.facts`); {} outside a recipe.
    steps_between_checkpoints: optimiser steps after which a checkpoint can be made; 1 where any step will do.
    asked_by_time: the step whose checkpoint is made because minutes have passed (`CheckpointClock`).
    saving: the checkpoint that is being written.
    last_saved_step: the step of the last checkpoint that this process has seen saved.
    """

    facts: dict = {}
    steps_between_checkpoints: int = 1
    asked_by_time: int | None = None
    saving: VerifiedSave | None = None
    last_saved_step: int | None = None

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # Weights that share their tensor with others are saved once. The Trainer would take a checkpoint for incomplete.
        tied = getattr(self.model, "all_tied_weights_keys", None)
        if tied:
            others = self.model._keys_to_ignore_on_save or ()
            self.model._keys_to_ignore_on_save = {*others, *tied}

    def _init_training_state(
        self, max_steps, updates_per_epoch, epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        """Begin the Trainer's state, or read that of a checkpoint, in a folder that may have been moved since."""
        position = super()._init_training_state(
            max_steps, updates_per_epoch, epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            self.state.best_model_checkpoint = best_of(resume_from_checkpoint)
            # Of this run, and not of the checkpoint: how often to log, evaluate and save.
            self.state.compute_steps(self.args, max_steps)
        return position

    def _get_output_dir(self, trial) -> str:
        """The folder in which the Trainer makes checkpoint-N: while it saves, one for what is not whole yet."""
        if self.saving is not None:
            return str(self.saving.folder.parent)
        return super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        """Save by the Trainer's own code, into a temporary folder that is verified and renamed.

        Weights that are not finite are not saved: the last good checkpoint would go for them.
        """
        if self.has_nonfinite_weights():
            if self.is_world_process_zero():
                step = self.state.global_step
                print(f"step {step} is not saved: its weights are not finite", flush=True)
            return
        self.saving = VerifiedSave(self)
        try:
            self.saving.begin()
            super()._save_checkpoint(model, trial)
            self.saving.complete()
        except Exception as error:
            self.saving.abandon(error)
            raise
        finally:
            self.saving = None

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        """As the Trainer's, which with save_strategy: best saves the best evaluations only.

        A save that the clock or a signal has asked for would be forgotten at the others.
        """
        is_asked = self.control.should_save
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if is_asked and self.args.save_strategy == SaveStrategy.BEST:
            self.save_checkpoint()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the two, while the model's files are hashed."""
        if self.saving is not None:
            self.saving.next_file()
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random numbers, while the optimizer's file is hashed."""
        if self.saving is not None:
            self.saving.next_file()
        super()._save_rng_state(output_dir)
        if self.saving is not None:
            self.saving.next_file()

    def save_checkpoint(self) -> None:
        """Save a checkpoint of this step now, unless the last one is of this step. Called in every process."""
        if self.last_saved_step == self.state.global_step:
            return
        self._save_checkpoint(self.model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write nothing: the run writes its own card (`runs.card`), and trl's would be half written after a kill."""
