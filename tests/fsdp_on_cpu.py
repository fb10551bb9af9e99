"""FSDP2 on processes that stand for GPUs: accelerate runs it on devices only."""

import os


def stand_in_for_gpus() -> bool:
    """Let accelerate take the processes that it started for as many GPUs, if it was asked for FSDP. Returns whether it was."""
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return False
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    import transformers.training_args
    from accelerate import DistributedType, PartialState

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    PartialState._prepare_backend = lambda self, *args, **kwargs: (
        "gloo",
        DistributedType.MULTI_GPU,
    )
    return True
