"""The short form of benchmarks/crash, and what it compares."""

import subprocess
import sys
from pathlib import Path

from benchmarks.crash.run import difference, without_times

ROOT = Path(__file__).resolve().parents[2]


def test_killed_runs_end_as_the_run_that_was_not_killed(tmp_path):
    flags = "--kills 1 --recipes sft --workers 1".split()
    command = [sys.executable, "benchmarks/crash/run.py", *flags, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs killed, 0 of them not equal" in done.stdout
    assert "| all |" in done.stdout


def test_the_comparison_sees_weights_rows_and_files():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    expected = {"model.safetensors": "aa", "metrics.jsonl": rows}
    assert difference(expected, dict(expected)) == ""
    assert difference(expected, expected | {"model.safetensors": "ab"}) == (
        "not equal: model.safetensors"
    )
    changed = [rows[0], {"step": 2, "loss": 1.5}]
    assert difference(expected, expected | {"metrics.jsonl": changed}) == (
        "not equal: metrics.jsonl row 2: loss 1.0 -> 1.5"
    )
    assert difference(expected, expected | {"metrics.jsonl": rows[:1]}) == (
        "not equal: metrics.jsonl 2 rows -> 1"
    )
    assert difference(expected, {"metrics.jsonl": rows, "samples.jsonl": []}) == (
        "not equal: model.safetensors missing, samples.jsonl added"
    )


def test_times_are_not_compared_and_nan_equals_itself():
    row = {"train_runtime": 1.0, "eval_samples_per_second": 2.0, "loss": float("nan"), "kl": 0.5}
    assert without_times(row) == {"loss": "NaN", "kl": 0.5}
