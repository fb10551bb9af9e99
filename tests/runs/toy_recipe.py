"""A recipe of one weight, which trains in milliseconds through the same frame as every other."""

import os
import signal

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from rlhf.runs.progress import use_run_progress
from rlhf.runs.run import recording, start
from rlhf.runs.settings import ModelSettings
from rlhf.runs.trainer import RunTrainer

ROWS = 24


class OneWeight(nn.Module):
    """y = w x, trained to be 3 x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, labels):
        return {"loss": ((self.weight * x - labels) ** 2).mean(), "logits": self.weight * x}


class OneWeightTrainer(RunTrainer, Trainer):
    """The Trainer of a recipe."""


class At(TrainerCallback):
    """Calls a function at the end of a step."""

    def __init__(self, step: int, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


class ToyRecipe:
    """One recipe, whose stages a test may replace.

    at: step -> what happens at its end. Each stage is called with the Run.
    """

    def __init__(self):
        self.at = {}
        self.prepare = self.evaluate = lambda run: None
        self.trainers = []

    def main(self, settings: ModelSettings, args: TrainingArguments) -> None:
        with recording("toy", settings, args) as run:
            self.prepare(run)
            torch.manual_seed(0)
            x = torch.linspace(-1, 1, ROWS)
            rows = [{"x": value, "labels": 3 * value} for value in x]
            callbacks = [At(step, function) for step, function in self.at.items()]
            trainer = OneWeightTrainer(
                model=OneWeight(), args=args, train_dataset=rows, eval_dataset=rows[:4], callbacks=callbacks
            )  # fmt: skip
            self.trainers.append(trainer)
            use_run_progress(trainer, args.output_dir)

            def save():
                if run.main:
                    torch.save(trainer.model.state_dict(), run.folder / "weights.pt")

            run.train(trainer, save)
            run.metrics({"loss": trainer.evaluate()["eval_loss"]})
            self.evaluate(run)

    def run(self, folder, *flags) -> int:
        """The exit code: 0 where the recipe returns."""
        options = (
            "--use_cpu --report_to none --per_device_train_batch_size 2 --logging_steps 1 --learning_rate 0.1 "
            "--disable_tqdm true"
        ).split()
        if "--save_strategy" not in flags:
            options += ["--save_strategy", "steps", "--save_steps", "4"]
        try:
            start(self.main, "", [*options, "--output_dir", str(folder), *map(str, flags)])
        except SystemExit as left:
            return left.code
        return 0


@pytest.fixture
def toy():
    return ToyRecipe()


def send(number: int):
    """A function that sends this process a signal."""
    return lambda *_: os.kill(os.getpid(), number)


@pytest.fixture
def terminate():
    return send(signal.SIGTERM)
