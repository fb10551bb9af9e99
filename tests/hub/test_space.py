"""A Space: the folder that would be pushed starts the chat by itself, with its own copy of the code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from rlhf.errors import UserError
from rlhf.hub.space import space_folder
from rlhf.models.load import save
from rlhf.models.scratch import new_policy
from rlhf.runs.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
# Hides the packages that requirements.txt does not name: the Space does not have them.
BLOCKER = """
from importlib.machinery import PathFinder
usual = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else usual(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""
TRAINING = ["datasets", "trl", "deepspeed", "matplotlib", "sklearn", "seqeval", "pytest"]


@pytest.fixture
def demo(tmp_path, tokenizer):
    """A folder with one finished run, ppo, of an untrained model."""
    folder = tmp_path / "runs" / "demo" / "ppo"
    sizes = dict(hidden_size=16, layers=1, heads=2, context=64)
    save(new_policy(tokenizer, model_type="gpt2", **sizes), tokenizer, folder)
    config = {"model_name_or_path": str(tmp_path / "secret"), "algorithm": "ppo"}
    record = RunRecord.begin("ppo", config=config, seed=0)
    record.status, record.command = "done", f"rlhf ppo --output_dir {folder}"
    record.save(folder)
    (folder / "samples.jsonl").write_text('{"prompt": "private"}\n')
    return folder.parent


def test_the_folder_has_what_a_space_needs_and_no_path_of_this_machine(demo, tmp_path):
    space = space_folder([demo / "ppo"], tmp_path / "space", title="Caring chat")
    folder = tmp_path / "space"
    assert space.models == {"models/ppo": "causal"} and space.size > 1_000_000
    _, header, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py"
    assert header["title"] == "Caring chat" and "| ppo | causal |" in body
    assert re.fullmatch(r"\d+\.\d+\.\d+", header["sdk_version"])
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert f"gradio=={header['sdk_version']}" in lines and "torch==" in " ".join(lines)
    assert not any(line.startswith(("trl", "datasets")) for line in lines)
    record = json.loads((folder / "models" / "ppo" / "run.json").read_text())
    assert record["recipe"] == "ppo" and "command" not in record
    # The samples and the value model are not served.
    names = {path.name for path in (folder / "models" / "ppo").iterdir()}
    assert "samples.jsonl" not in names and "model.safetensors" in names
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".txt") and path.is_file():
            assert str(tmp_path) not in path.read_text(encoding="utf-8"), path
    assert not list(folder.rglob("__pycache__"))


def test_the_same_runs_give_the_same_bytes(demo, tmp_path):
    files = []
    for name in ("one", "two"):
        folder = space_folder([demo / "ppo"], tmp_path / name).folder
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files.append([(path.relative_to(folder), path.read_bytes()) for path in paths])
    assert files[0] == files[1]


def test_models_of_one_name_and_of_the_hub_are_all_listed(demo, tmp_path):
    shutil.copytree(demo / "ppo", tmp_path / "other" / "ppo")
    runs = [demo / "ppo", tmp_path / "other" / "ppo", "user/model"]
    space = space_folder(runs, tmp_path / "space")
    assert list(space.models) == ["models/ppo", "models/ppo-2", "user/model"]
    listed = json.loads((tmp_path / "space" / "models.json").read_text())["models"]
    assert listed == list(space.models)
    header = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---\n")[1])
    assert header["models"] == header["preload_from_hub"] == ["user/model"]


def test_what_cannot_be_served_is_refused_with_the_remedy(demo, tmp_path):
    with pytest.raises(UserError, match="no such run: give the folder of a run"):
        space_folder([tmp_path / "nothing"], tmp_path / "space")
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match="no model that can be tried: give a run of SFT"):
        space_folder([tmp_path / "plain"], tmp_path / "space")
    record = RunRecord.load(demo / "ppo")
    record.status = "running"
    record.save(demo / "ppo")
    with pytest.raises(UserError, match=r"is not finished \(running\)"):
        space_folder([demo / "ppo"], tmp_path / "space")
    assert not (tmp_path / "space").exists()
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty: give another folder"):
        space_folder([demo / "ppo"], tmp_path / "space")


def started(folder: Path, blocker: Path) -> tuple[subprocess.Popen, str]:
    """The process of app.py, and its address."""
    (blocker / "sitecustomize.py").write_text(BLOCKER.format(names=TRAINING))
    keep = ("PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
    variables = {name: value for name, value in os.environ.items() if name in keep}
    variables |= {"PYTHONPATH": str(blocker), "GRADIO_SERVER_PORT": "0", "HF_HUB_OFFLINE": "1"}
    variables["SPACE_HOST"] = "ann-chat.hf.space"
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=folder, env=variables, text=True, stdout=subprocess.PIPE
    )
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.strip()
    raise AssertionError(f"it ended with {process.wait()}")


def answer(url: str, data: dict | None = None, **headers) -> tuple:
    """(JSON of the body, headers) of a request."""
    body = json.dumps(data).encode() if data is not None else None
    headers = {"Content-Type": "application/json"} | headers
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as reply:
        content = reply.read()
        kind = reply.headers.get_content_type()
        return (json.loads(content) if kind == "application/json" else {}), reply.headers


@pytest.mark.slow
def test_the_space_starts_from_its_folder_and_answers(demo, tmp_path):
    folder = space_folder([demo / "ppo"], tmp_path / "space").folder
    shutil.rmtree(demo)  # it needs nothing but its own folder
    (tmp_path / "blocker").mkdir()
    process, url = started(folder, tmp_path / "blocker")
    try:
        health, headers = answer(f"{url}/health", Host="ann-chat.hf.space")
        assert health["models"] == 1
        # The Hub shows it in a frame; other sites may not.
        policy = headers["Content-Security-Policy"]
        assert "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co" in policy
        assert "X-Frame-Options" not in headers
        answer(f"{url}/", Host="ann-chat.hf.space")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            answer(f"{url}/health", Host="evil.example.org")
        asked = {"model": "ppo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        reply, _ = answer(f"{url}/v1/chat/completions", asked)
        assert reply["choices"][0]["message"]["role"] == "assistant"
        assert reply["usage"]["completion_tokens"] > 0
        # No way to start runs, rate or read files.
        page = urllib.request.urlopen(f"{url}/config", timeout=60).read().decode()
        assert "/runs_start" not in page and "/rank_ask" not in page
        assert str(ROOT) not in page
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
