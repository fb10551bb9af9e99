"""The disk of a run: room for what it is going to save, and errors of a disk that takes no more."""

import errno
import shutil
from pathlib import Path

from rlhf.errors import UserError

GB = 2**30
STATES_OF_ADAM = 2  # numbers that the optimizer keeps for each weight
BLOCK = 2**14  # bytes
# Errors of the system that say that a disk takes no more. EDQUOT, which Windows lacks: the user's share of it is full.
REFUSALS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS)
# The same in the messages of libraries that keep no errno: safetensors, and torch's writer, which does not say why.
SIGNS_OF_REFUSAL = (
    "no space left",
    "disk quota exceeded",
    "read-only file system",
    "os error 28",
    "pytorchstreamwriter failed",
    "unexpected pos",
)


def size_of_model(model) -> int:
    """Bytes of the weights, as this process holds them."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def size_of_optimizer(model, optim: str) -> int:
    """Bytes that the optimizer is sure to keep. Of others than Adam with whole states it may be nothing."""
    if not optim.startswith("adamw_torch"):
        return 0
    trained = [p for p in model.parameters() if p.requires_grad]
    return STATES_OF_ADAM * sum(p.numel() * p.element_size() for p in trained)


def check_free_disk(model, args, *, with_checkpoints: bool) -> str:
    """Refuse a run whose model, or first checkpoint, cannot fit on the disk. Returns a warning where two may not; else "".

    A new checkpoint is written before an old one goes. Slices of weights, as of ZeRO-3, are counted as they are: too small.
    """
    free = shutil.disk_usage(Path(args.output_dir)).free
    weights = size_of_model(model)
    checkpoint = 0
    if with_checkpoints:
        checkpoint = weights + size_of_optimizer(
            model, str(getattr(args.optim, "value", args.optim))
        )
    needed = max(weights, checkpoint)
    if free < needed:
        what = "a checkpoint" if with_checkpoints else "the model"
        raise UserError(
            f"output_dir {args.output_dir}: {what} takes {needed / GB:.2g} GB, and {free / GB:.2g} GB are free: free some "
            "space, or choose another output_dir"
        )
    wanted = 2 * checkpoint + weights
    if free < wanted:
        return (
            f"the disk of {args.output_dir} may become full: two checkpoints and the model take about "
            f"{wanted / GB:.2g} GB, and {free / GB:.2g} GB are free"
        )
    return ""


def refuses_writes(error: BaseException) -> bool:
    """True of an error of Python, torch or safetensors that says that the disk is full or takes no writes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in REFUSALS:
            return True
        message = str(seen).lower()
        if any(sign in message for sign in SIGNS_OF_REFUSAL):
            return True
        # An error of closing the file may hide that of writing it, which is its context.
        seen = seen.__cause__ or seen.__context__
    return False


def is_full(folder: Path) -> bool:
    """True if the disk has no room for another block. torch.save does not say that this is why it failed."""
    return shutil.disk_usage(folder).free < BLOCK
