"""What does TRL's last PPO compute on one rollout, number by number?

    python benchmarks/ppo_parity/run.py [--venv .venv-trl] [--output tests/algorithms/trl_1_12.json]

TRL removed PPO after 1.12.0. This makes a virtual environment with that version and the project's own torch and
transformers (about 1 GB, some minutes, once), runs one update of its PPOTrainer there on tiny random GPT-2 models
(worker.py), and writes what TRL computed. tests/algorithms/test_parity_with_trl.py compares our formulas with it.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import as_json, rounded  # noqa: E402

TRL = "1.12.0"
DIGITS = 9  # float32 has no more
SHARED = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "numpy",
)  # the same versions on both sides


def ensure_venv(folder: Path) -> Path:
    """The Python of the TRL environment, which is made when it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with trl {TRL}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [f"{name}=={version(name)}" for name in SHARED]
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", f"trl=={TRL}", *wanted], check=True
        )
    found = subprocess.run(
        [str(python), "-c", "from importlib.metadata import version; print(version('trl'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    if found != TRL:
        raise SystemExit(f"{folder} holds trl {found}, this needs {TRL}: give another --venv")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--venv", default=".venv-trl", help="virtual environment with TRL, made when missing"
    )
    parser.add_argument("--output", default=str(ROOT / "tests" / "algorithms" / "trl_1_12.json"))
    arguments = parser.parse_args()
    python = ensure_venv(Path(arguments.venv).absolute())
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    done = subprocess.run(
        [str(python), str(HERE / "worker.py")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found = rounded(json.loads(done.stdout.splitlines()[-1]), DIGITS)
    text = as_json({"command": "python benchmarks/ppo_parity/run.py", **found}) + "\n"
    Path(arguments.output).write_text(text, encoding="utf-8")
    print(
        f"wrote {arguments.output}: {len(text)} bytes; response lengths {found['rollout']['response_lengths']}"
    )


if __name__ == "__main__":
    main()
