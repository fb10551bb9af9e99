"""A recipe of a few lines, run in this process in a tenth of a second."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, set_seed

from rlhf.runs import card, durable
from rlhf.runs import run as frame
from rlhf.runs.progress import use_run_progress
from rlhf.runs.run import Run, recording, start
from rlhf.runs.settings import RunSettings
from rlhf.runs.trainer import RunTrainer
from tests.runs.toy_recipe import terminate, toy  # noqa: F401, fixtures

STEPS = 6
FLAGS = (
    f"--use_cpu true --report_to none --disable_tqdm true --max_steps {STEPS} --logging_steps 1 --learning_rate 0.1 "
    "--per_device_train_batch_size 2 --save_strategy steps --save_steps 2"
).split()
DATA = [{"name": "rows.jsonl", "rows": 16, "sha256": "ab" * 32}]


class Kill(BaseException):
    """Stands for kill -9: nothing may catch it to tidy up."""


class Model(torch.nn.Module):
    """Dropout, so that a resumed run needs the random numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x, labels):
        output = self.dropout(self.layer(x))  # (B, 4)
        return {"loss": ((output - labels) ** 2).mean(), "logits": output}


class TinyTrainer(RunTrainer, Trainer):
    """The Trainer on 16 rows of noise."""


def make_trainer(args, steps_between_checkpoints: int = 1):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(16):
        x, labels = torch.randn(2, 4, generator=generator)
        rows.append({"x": x, "labels": labels})
    trainer = TinyTrainer(model=Model(), args=args, train_dataset=rows, eval_dataset=rows)
    trainer.steps_between_checkpoints = steps_between_checkpoints
    use_run_progress(trainer, args.output_dir)
    return trainer


def tiny_recipe(data=DATA, hook=None, recipe="tiny"):
    """The `main` of a recipe. hook: called with its trainer before it trains."""

    def main(settings: RunSettings, args: TrainingArguments) -> None:
        with recording(recipe, settings, args) as run:
            set_seed(args.seed)
            run.record.data = data
            trainer = make_trainer(args)
            if hook is not None:
                hook(trainer)
            run.train(trainer, lambda: trainer.save_model(args.output_dir))

    return main


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """f(*flags, name="run"): run the recipe, without plots and card; the folder of its run."""
    monkeypatch.setattr(frame, "plot_curves", lambda folder: None)
    monkeypatch.setattr(card, "write_card", lambda folder, **options: None)
    monkeypatch.setattr(Run, "show", lambda run: None)

    def tiny(*flags, name="run", **options) -> Path:
        folder = tmp_path / name
        argv = ["--output_dir", str(folder), *FLAGS, *map(str, flags)]
        start(tiny_recipe(**options), "", argv)
        return folder

    return tiny


@pytest.fixture
def failing_tiny(tiny, capsys):
    """What the recipe says as it leaves with exit code 2."""

    def failing_tiny(*flags, **options) -> str:
        with pytest.raises(SystemExit) as left:
            tiny(*flags, **options)
        assert left.value.code == 2
        return capsys.readouterr().err

    return failing_tiny


@pytest.fixture
def killed(tiny, tmp_path, monkeypatch):
    """f(*flags, at): a run that is killed at the file boundary with this number, from 1 on; its folder."""

    def killed(*flags, at: int, name="run", **options) -> Path:
        passed = []

        def boundary(path):
            passed.append(path)
            if len(passed) == at:
                raise Kill

        with monkeypatch.context() as patch:
            patch.setattr(durable, "boundary", boundary)
            with pytest.raises(Kill):
                tiny(*flags, name=name, **options)
        # A kill leaves the record as it was while the run trained.
        path = tmp_path / name / "run.json"
        if path.exists():
            content = json.loads(path.read_text())
            path.write_text(json.dumps(content | {"status": "running"}))
        return tmp_path / name

    return killed


@pytest.fixture
def stopped(tiny, tmp_path):
    """f(*flags, step): a run that dies after an optimiser step, as if killed; its folder."""

    def stopped(*flags, step: int = 5, name="run", **options) -> Path:
        def hook(trainer):
            train = trainer.training_step

            def training_step(*args, **kwargs):
                if trainer.state.global_step == step:
                    raise Kill
                return train(*args, **kwargs)

            trainer.training_step = training_step

        with pytest.raises(Kill):
            tiny(*flags, name=name, hook=hook, **options)
        path = tmp_path / name / "run.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"status": "running"}))
        return tmp_path / name

    return stopped


def same_weights(first: Path, second: Path) -> bool:
    first, second = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)
