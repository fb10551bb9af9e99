"""What the app and the HTTP endpoints serve, in one object."""

from dataclasses import dataclass
from pathlib import Path

from rlhf.serving.engine import Engine
from rlhf.serving.predictors import Encoders


@dataclass(frozen=True)
class Service:
    """engine: chat and reward models. encoders: models of the encoder tasks. runs: the folder of the runs."""

    engine: Engine
    encoders: Encoders
    runs: Path
