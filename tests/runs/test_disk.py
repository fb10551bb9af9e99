"""Room on the disk, looked at before the first step."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from rlhf.errors import UserError
from rlhf.runs.disk import GB, check_free_disk, size_of_model, size_of_optimizer


@pytest.fixture
def model():
    """Of 2**28 numbers without memory: 1 GB of weights."""
    return torch.nn.Linear(2**14, 2**14, bias=False, device="meta")


@pytest.mark.parametrize(
    ("free", "with_checkpoints", "said"),
    [
        (0.5, False, "the model takes 1 GB, and 0.5 GB are free"),
        (1.5, False, ""),
        (2.5, True, "a checkpoint takes 3 GB, and 2.5 GB are free"),
        (3.5, True, "two checkpoints and the model take about 7 GB, and 3.5 GB are free"),
        (7.5, True, ""),
    ],
)
def test_a_run_that_cannot_fit_is_refused_and_one_that_may_not_is_warned(
    monkeypatch, tmp_path, model, free, with_checkpoints, said
):
    usage = SimpleNamespace(free=int(free * GB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    args = SimpleNamespace(output_dir=str(tmp_path), optim="adamw_torch")
    try:
        message = check_free_disk(model, args, with_checkpoints=with_checkpoints)
        assert not message or "may become full" in message
    except UserError as error:
        message = str(error)
        assert "free some space" in message
    assert said in message if said else message == ""


def test_only_trained_weights_have_a_state_of_the_optimizer(model):
    assert size_of_model(model) == GB
    assert size_of_optimizer(model, "adamw_torch_fused") == 2 * GB
    assert size_of_optimizer(model, "sgd") == 0
    model.weight.requires_grad = False
    assert size_of_optimizer(model, "adamw_torch") == 0
