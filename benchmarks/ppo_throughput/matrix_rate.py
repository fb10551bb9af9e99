"""How fast are matrix products here, in GFLOP/s? python matrix_rate.py [JOB.json] prints one line of JSON.

Large square ones, the best of a few, on all cores. With a job also those of its policy, as `precision: auto` times them, on
one core, and what that chooses.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

SIZE, TIMES = 2048, 4


def rate(dtype: torch.dtype) -> float:
    left, right = torch.randn(SIZE, SIZE).to(dtype), torch.randn(SIZE, SIZE).to(dtype)
    seconds = []
    for _ in range(TIMES + 1):  # the first warms up, and is hardly ever the best
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds) / 1e9


def of_policy(job: dict) -> dict:
    """The rates of the policy's own products with the tokens of a micro-batch, and the faster precision."""
    from rlhf.models.load import load_policy
    from rlhf.models.precision import training_rates

    shape = job["shape"]
    policy = load_policy(str(Path(job["folder"]) / "policy"))
    tokens = shape["micro_batch"] * (shape["prompt"] + shape["completion"])
    rates = training_rates(policy, tokens=tokens, device=torch.device("cpu"))
    return {"fp32": rates.fp32, "bf16": rates.bf16, "faster": rates.faster}


def main(arguments: list[str]) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    result = {
        "fp32": rate(torch.float32),
        "bf16": rate(torch.bfloat16),
        "threads": torch.get_num_threads(),
    }
    if arguments:
        result["policy"] = of_policy(json.loads(Path(arguments[0]).read_text()))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
