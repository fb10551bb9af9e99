"""Room on the disk, looked at before the first step, and errors of a full one."""

import errno
import shutil
from types import SimpleNamespace

import pytest
import torch

from rlhf.errors import UserError
from rlhf.runs.disk import GB, check_free_disk, refuses_writes, size_of_model, size_of_optimizer


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


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError(30, "Read-only file system"), True),
        (OSError(13, "Permission denied"), False),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("inline_container.cc:672] . unexpected pos 1728 vs 1620"), True),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("I/O error: No space left on device (os error 28)"), True),
    ],
)
def test_a_full_disk_is_known_from_the_errors_of_all_writers(error, full):
    assert refuses_writes(error) == full


def test_errors_of_the_disk_are_known_from_their_cause():
    def caused():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("file write failed") from error

    with pytest.raises(RuntimeError) as raised:
        caused()
    assert refuses_writes(raised.value)
    assert refuses_writes(Exception("I/O error: No space left on device (os error 28)"))
    assert not refuses_writes(OSError(errno.ENOENT, "No such file or directory"))
