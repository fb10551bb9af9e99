"""The same round trip on loopback, and on the real Hub for who asks for it with `-m live_hub` and has a token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import TOKEN

ROOT = Path(__file__).resolve().parents[2]


def round_trip(home: Path, **environment) -> str:
    """What the program prints, with a cache of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    inherited |= {"HF_HOME": str(home), "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-m", "tests.hub.round_trip"]
    done = subprocess.run(
        command, cwd=ROOT, env=inherited, capture_output=True, text=True, timeout=300
    )
    assert environment["HF_TOKEN"] not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_comes_back_from_loopback(hub, tmp_path):
    options = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    assert "the same came back" in round_trip(tmp_path, **options)
    assert not hub.repos


@pytest.mark.live_hub
def test_a_run_comes_back_from_the_hub(request, tmp_path):
    token = os.environ.get("HF_TOKEN")
    if "live_hub" not in (request.config.getoption("markexpr") or "") or not token:
        pytest.skip("only with -m live_hub and HF_TOKEN: it makes a repository, and removes it")
    assert "the same came back" in round_trip(tmp_path, HF_TOKEN=token)
