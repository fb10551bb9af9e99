"""How fast are large matrix products here, in GFLOP/s? Prints one line of JSON. Best of a few, all cores."""

import json
import os
import time

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


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(
        json.dumps(
            {
                "fp32": rate(torch.float32),
                "bf16": rate(torch.bfloat16),
                "threads": torch.get_num_threads(),
            }
        )
    )
