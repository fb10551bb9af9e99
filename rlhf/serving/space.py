"""Serve the models of a folder to everybody: the program of a Space of Hugging Face, see rlhf.hub.space.

The Space's proxy asks nobody for a key, so there is no login. Nothing is kept: no feedback, no runs, no files.
"""

import os
import warnings
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.record import read_object
from rlhf.serving.catalogue import CHAT, REWARD, Models, label_models
from rlhf.serving.engine.deferred import DeferredEngine
from rlhf.serving.engine.requests import Limits
from rlhf.serving.predictors import Encoders
from rlhf.serving.service import Service

LISTED = "models.json"  # folders below the Space's own and ids of the Hub; the first is the default
PORT = 7860  # to which a Space sends its visitors
# A page of the Hub shows the Space in a frame.
FRAMES = ("https://huggingface.co", "https://*.huggingface.co")


def find_models(folder: Path) -> Models:
    """The models of a Space's folder by kind. UserError where there is none that can be tried."""
    named = read_object(folder / LISTED).get("models", [])
    models = label_models([folder / name for name in named if (folder / name).is_dir()])
    for name in named:
        if not (folder / name).is_dir():
            models.setdefault(CHAT, {})[name] = name
    if not models or list(models) == [REWARD]:
        raise UserError(f"{folder}: no model that answers")
    return models


def make_service(models: Models, folder: Path) -> Service:
    """A service over these models, which never change, without feedback and jobs."""
    limits = Limits()

    def device() -> str:
        from rlhf.runs.processes import best_device

        return best_device()

    def make_engine(runs: dict[str, str], reward_runs: dict[str, str]):
        # They take seconds to import, and the page is there before.
        from transformers.utils.logging import disable_progress_bar

        from rlhf.serving.engine.engine import Engine

        disable_progress_bar()
        return Engine(runs, device(), reward_runs=reward_runs, limits=limits)

    chat, rewards = models.get(CHAT, {}), models.get(REWARD, {})
    engine = DeferredEngine(make_engine, chat, rewards, limits=limits)
    encoders = {kind: runs for kind, runs in models.items() if kind not in (CHAT, REWARD)}
    return Service(engine, Encoders(encoders, device), folder)


def serve_folder(folder: Path) -> int:
    """Serve the models of a Space's folder until a signal; returns the exit code.

    SPACE_HOST is the Space's own name, which Hugging Face sets. GRADIO_SERVER_PORT is another port than 7860.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, to their callers
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
    models = find_models(folder)
    from rlhf.serving.web.guard import Rules, trusted_hosts
    from rlhf.serving.web.listen import bind, serve
    from rlhf.serving.web.server import build_app

    port = int(os.environ.get("GRADIO_SERVER_PORT") or PORT)
    host = os.environ.get("SPACE_HOST")
    names = [host] if host else []
    # Health checks come to an address, without a name.
    rules = Rules(hosts=trusted_hosts("127.0.0.1", names), any_address=True, frames=FRAMES)
    service = make_service(models, folder)
    app = build_app(service, rules=rules)
    listener = bind("0.0.0.0", port)

    def on_start() -> None:
        named = [label for runs in models.values() for label in runs]
        print(f"models: {', '.join(named)}")
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        service.engine.start()

    return serve(app, listener, on_start, service.engine.close)
