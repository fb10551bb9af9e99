"""A recipe that pauses once in a phase, until a signal has been sent to it: `python paused.py RECIPE FLAGS ...`.

PAUSE_AT names the phase. The main process makes the file PAUSE_FILE when it is there, and goes on when the file is gone.
"""

import os
import sys
import time
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds of a pause at most


def pause() -> None:
    """Wait as Python does: a signal's handler runs between two short sleeps."""
    path = Path(os.environ["PAUSE_FILE"])
    if os.environ.get("RANK", "0") != "0" or path.with_suffix(".done").exists():
        return
    path.with_suffix(".done").touch()
    path.touch()
    end = time.monotonic() + LIMIT
    while path.exists() and time.monotonic() < end:
        time.sleep(0.01)


def pause_before(cls: type, name: str, is_time) -> None:
    """Pause before a method. is_time: f(its arguments) -> whether now."""
    method = getattr(cls, name)

    def paused(*args, **options):
        if is_time(*args):
            pause()
        return method(*args, **options)

    setattr(cls, name, paused)


def set_pause(phase: str) -> None:
    """Pause in a phase: data, step, rollout, evaluation, save or after."""
    from transformers import Trainer

    from rlhf.policy_gradient.rollouts import RolloutMaker
    from rlhf.policy_gradient.trainer import PolicyGradientTrainer
    from rlhf.runs import durable
    from rlhf.runs.run import Run
    from rlhf.runs.settings import ModelSettings

    sys.path.insert(0, str(ROOT))
    from benchmarks.crash.part import holders

    if phase == "data":
        pause_before(ModelSettings, "load_tokenizer", lambda *_: True)
    elif phase == "step":
        pause_before(Trainer, "training_step", lambda trainer, *_: trainer.state.global_step == 6)
    elif phase == "rollout":
        pause_before(RolloutMaker, "make", lambda maker, index: index == 4)
    elif phase == "evaluation":
        for cls in (Trainer, PolicyGradientTrainer):
            pause_before(cls, "evaluate", lambda trainer, *_: trainer.state.global_step == 8)
    elif phase == "save":
        passed = []

        def boundary(path) -> None:
            passed.append(path)
            if f"checkpoint-{8}" in str(path):
                pause()

        for module in holders(durable.boundary):
            module.boundary = boundary
    elif phase == "after":
        train = Run.train

        def train_and_pause(*args, **options):
            train(*args, **options)
            pause()

        Run.train = train_and_pause


def main() -> None:
    recipe, *argv = sys.argv[1:]
    set_pause(os.environ["PAUSE_AT"])
    run(recipe, argv)


def run(recipe: str, argv: list[str]) -> None:
    """Start a recipe as its script does."""
    from rlhf.runs.run import start

    path = ROOT / "recipes" / f"{recipe}.py"
    spec = util.spec_from_file_location(f"recipe_{recipe}", path)
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    sys.argv = [str(path), *argv]
    start(module.main, module.__doc__, argv)


if __name__ == "__main__":
    main()
