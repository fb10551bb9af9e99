"""How many users can one model serve at once, next to `generate` one by one and to `transformers serve`?

    python benchmarks/serving/run.py [--size small] [--users 1 4 16 64] [--tokens 48] [--repeats 3] [--threads 2] [--record]

--size: small (the demo's shape), medium or gpt2; weights are random. --tokens: of each answer. The ways take turns within
each repeat: `generate` one question after the other, `library` (transformers' continuous batching), `our engine`,
`transformers serve --continuous-batching` and `our server` with the OpenAI endpoint; `prefill` is the forward pass over a
prompt alone. A way that cannot run here is named with the reason. --record writes results/<size>-<date>.json: medians of
tokens per second (of the wall, and of processor time), time to the first text p50 / p95, memory, and the ratios.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.record import check_clean_tree, rounded, write_record  # noqa: E402
from benchmarks.serving.make_model import SIZES, make_model  # noqa: E402

WAYS = ("prefill", "generate", "library", "our engine", "transformers serve", "our server")
# name of a ratio -> (way above, way below)
RATIOS = {
    "our engine / generate": ("our engine", "generate"),
    "our engine / library": ("our engine", "library"),
    "our server / transformers serve": ("our server", "transformers serve"),
    "our engine / transformers serve": ("our engine", "transformers serve"),
}


class Worker:
    """A process that serves in one way."""

    def __init__(self, way: str, folder: Path, tokens: int, threads: int):
        self.way = way
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, str(HERE / "worker.py"), way, str(folder), str(tokens)]
        self.process = subprocess.Popen(
            [*command, str(free_port())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        first = self.process.stdout.readline()
        self.missing = json.loads(first or '{"missing": "it ended"}').get("missing")

    def ask(self, users: int) -> dict:
        print(users, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", arguments.size)
        content = measure(Path(folder) / "model", arguments)
    print(json.dumps(rounded(content), indent=1))
    if arguments.record:
        write_record(HERE, __doc__, content, commit=commit, name=arguments.size)


def measure(folder: Path, arguments) -> dict:
    """The numbers of each way and number of users, and their ratios."""
    workers, missing = [], {}
    for way in arguments.ways:
        worker = Worker(way, folder, arguments.tokens, arguments.threads)
        if worker.missing:
            missing[way] = worker.missing
        else:
            workers.append(worker)
    results: dict[str, dict[str, list[dict]]] = {}
    for repeat in range(arguments.repeats + 1):
        for users in arguments.users:
            for worker in workers:
                result = worker.ask(users)
                if repeat:  # the first one warms up
                    by_users = results.setdefault(worker.way, {})
                    by_users.setdefault(str(users), []).append(result)
    for worker in workers:
        worker.close()
    content = {"size": arguments.size, "tokens": arguments.tokens, "threads": arguments.threads}
    content |= {"missing": missing, "ways": {}, "ratios": {}}
    for way, by_users in results.items():
        content["ways"][way] = {
            users: summary(repeats, arguments.tokens) for users, repeats in by_users.items()
        }
    content["ratios"] = ratios(content["ways"])
    return content


def summary(repeats: list[dict], tokens: int) -> dict:
    """Medians over the repeats; percentiles of the first text over the users of all repeats."""
    rates, cpu_rates, first = [], [], []
    for result in repeats:
        written = tokens * len(result["ttft"])
        rates.append(written / result["wall"])
        cpu_rates.append(written / max(result["cpu"], 1e-3))
        first += result["ttft"]
    first.sort()
    return {
        "tokens_per_second": statistics.median(rates),
        "tokens_per_cpu_second": statistics.median(cpu_rates),
        "first_text_p50": statistics.median(first),
        "first_text_p95": first[min(len(first) - 1, int(0.95 * len(first)))],
        "memory_mb": max(result["memory"] for result in repeats) / 2**20,
    }


def ratios(ways: dict) -> dict:
    """Tokens per second of one way over another per number of users, and the first text over a bare prefill."""
    table = {}
    for name, (above, below) in RATIOS.items():
        if above in ways and below in ways:
            table[name] = {}
            for users in ways[above]:
                for key in ("tokens_per_second", "tokens_per_cpu_second"):
                    value = ways[above][users][key] / ways[below][users][key]
                    table[name][f"{users} users, {key}"] = value
    if "prefill" in ways and "our engine" in ways and "1" in ways["prefill"]:
        bare = ways["prefill"]["1"]["first_text_p50"]
        table["first text / prefill, 1 user"] = ways["our engine"]["1"]["first_text_p50"] / bare
    return table


if __name__ == "__main__":
    main()
