"""All that the app and the HTTP endpoints serve, in one object."""

from dataclasses import dataclass
from pathlib import Path

from rlhf.serving.engine import Engine
from rlhf.serving.predictors import Encoders


@dataclass(frozen=True)
class Service:
    """All that the app and the endpoints serve.

    engine: chat and reward models. encoders: models of the encoder tasks. runs: the folder of the runs.
    feedback: the store of what people say about answers; None if it is not collected.
    jobs: runs that the app starts; None if it starts none.
    """

    engine: Engine
    encoders: Encoders
    runs: Path
    feedback: object | None = None
    jobs: object | None = None
