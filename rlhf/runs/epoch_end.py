"""The checkpoint of an epoch's last step, which is saved after what is due once per epoch."""

from transformers import TrainerCallback


class SaveAfterEpoch(TrainerCallback):
    """Puts off a save at the last step of an epoch until the log and the evaluation of that epoch are made.

    The Trainer saves first, and a run that resumes there begins the next epoch: it would never make the two. Add it after
    every callback that asks for a save.
    """

    def __init__(self):
        self.waits = False

    def on_step_end(self, args, state, control, **kwargs):
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        # The Trainer counts epochs as 1.5 in the middle of the second one.
        if control.should_save and (is_last or float(state.epoch).is_integer()):
            control.should_save, self.waits = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self.waits

    def on_save(self, args, state, control, **kwargs):
        self.waits = False
