"""Sharing where things go wrong around it: killed pushes, a Hub below a path, a cache without writes, other locales."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from rlhf.errors import UserError
from rlhf.hub.share import share_run
from rlhf.hub.space import requirements
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.runs.card import card_text
from tests.hub.conftest import TOKEN
from tests.hub.test_cards import DECODERS, ENCODERS, form  # noqa: F401  a fixture
from tests.hub.test_share import make_run

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "POST /api/models/alice/sft/commit"


@pytest.fixture
def elsewhere(hub, tmp_path):
    """f(words, **environment): start Python in another folder, with this Hub as the only one."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def elsewhere(words, **environment) -> subprocess.Popen:
        given = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        given = {
            name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"
        } | given
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        words = [sys.executable, *map(str, words)]
        return subprocess.Popen(words, cwd=folder, env=given | environment, **pipes)

    return elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("at", ["PUT /", COMMIT])
def test_a_push_that_is_killed_leaves_a_whole_repository_or_none(hub, elsewhere, tmp_path, at):
    run = make_run(tmp_path / "runs" / "sft")
    hub.fail(at, "slow", seconds=1.5)
    push = elsewhere(["-m", "rlhf", "share", run, "--repo", "alice/sft"])
    end = time.monotonic() + 60
    while not any(re.search(at, line) for line in hub.requests):
        assert time.monotonic() < end and push.poll() is None
        time.sleep(0.01)
    push.send_signal(signal.SIGKILL)
    push.wait()
    time.sleep(2)  # what the Hub has got, it does
    left = set(hub.contents("alice/sft")) - {".gitattributes"}
    assert not left or {"model.safetensors", "README.md", "run.json"} <= left
    share_run(run, "alice/sft")
    assert {"model.safetensors", "README.md", "run.json"} <= hub.contents("alice/sft").keys()
    assert not share_run(run, "alice/sft").changed


def test_a_hub_below_a_path_is_pushed_to_and_pulled_from(hub, tmp_path, monkeypatch):
    url = f"{hub.url}/mirror/hf"
    monkeypatch.setattr(hub, "prefix", "/mirror/hf")
    monkeypatch.setattr(hub, "url", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    run = make_run(tmp_path / "runs" / "sft")
    pushed = share_run(run, "sft")
    assert pushed.url == f"{url}/alice/sft" and not share_run(run, "sft").changed
    assert load_policy("alice/sft").config.vocab_size == len(load_tokenizer("alice/sft"))
    assert not any("/outside" in line for line in hub.requests)


def test_a_cache_that_takes_no_writes_is_an_error_with_its_remedy(hub, tmp_path, monkeypatch):
    share_run(make_run(tmp_path / "runs" / "sft"), "sft")
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(blocked / "hub"))
    with pytest.raises(UserError, match="the cache of the Hub takes no writes .* HF_HOME"):
        load_policy("alice/sft")


def test_a_card_is_the_same_in_another_time_zone(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs" / "sft")
    here = card_text(run)
    try:
        monkeypatch.setenv("TZ", "Pacific/Kiritimati")
        time.tzset()
        assert card_text(run) == here
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.slow
def test_a_card_is_the_same_where_text_is_ascii(elsewhere, tmp_path):
    run = make_run(tmp_path / "runs" / "sft")
    (run / "samples.jsonl").write_text(
        '{"prompt": "안녕", "completion": "é ü"}\n', encoding="utf-8"
    )
    expected = hashlib.sha256(card_text(run).encode()).hexdigest()
    code = f"""
import hashlib, locale
from rlhf.runs.card import card_text
assert locale.getpreferredencoding(False) != "UTF-8", locale.getpreferredencoding(False)
print(hashlib.sha256(card_text({str(run)!r}).encode()).hexdigest())
"""
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    process = elsewhere(["-c", code], TZ="Asia/Seoul", **plain)
    said = process.communicate()[0].decode()
    assert said.split()[-1] == expected, said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer", *ENCODERS, *DECODERS])
def test_the_snippet_of_each_form_runs_in_a_process_of_its_own(form, elsewhere, tmp_path, name):  # noqa: F811
    code = re.search(
        r"^```python\n(.*?)^```",
        card_text(form(name), model_id=str(tmp_path / name)),
        flags=re.M | re.S,
    )[1]
    process = elsewhere(["-c", code])
    said = process.communicate()[0].decode()
    assert process.returncode == 0 and said.strip(), said


def test_a_space_asks_for_the_versions_that_are_installed_here():
    option, *lines = requirements().splitlines()
    assert option.startswith("--extra-index-url https://")
    for line in lines:
        name, _, pinned = line.partition("==")
        # PyPI has no local versions such as 2.13.0+cpu.
        assert pinned == version(name).partition("+")[0] and "+" not in pinned


@pytest.mark.slow
def test_two_processes_push_one_commit(hub, launch, make_tokenizer, tmp_path, monkeypatch):
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_TOKEN", TOKEN), ("HF_HUB_OFFLINE", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    words = ["red", "green", "blue"]
    make_tokenizer(words, "bert").save_pretrained(tmp_path / "tokenizer")
    rows = [json.dumps({"text": f"{word} {i}", "label": word}) for word in words for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    sizes = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 16 --max_length 16"
    flags = f"--dataset_name {tmp_path}/rows.jsonl --tokenizer_name_or_path {tmp_path}/tokenizer {sizes} --max_steps 2"
    flags += f" --output_dir {tmp_path}/words --use_cpu --report_to none --push_to_hub --hub_model_id alice/words"
    launch(ROOT / "recipes" / "classification.py", *flags.split())
    repo = hub.repo("alice/words")
    # The one that makes the repository, and that of the push.
    assert len(repo.commits) == 2 and "model.safetensors" in hub.contents("alice/words")
    commits = [
        line for line in hub.requests if line.startswith("POST /api/models/alice/words/commit")
    ]
    assert len(commits) == 1
