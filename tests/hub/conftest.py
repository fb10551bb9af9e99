"""The Hub on loopback, to which huggingface_hub, transformers and datasets of this process talk during a test."""

import time
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from rlhf import online
from rlhf.data.hub import forget_commits as forget_data_sets
from rlhf.models.snapshots import forget_commits
from tests.hub_double import running_hub

TOKEN = "hf_alice_of_the_tests"


@pytest.fixture(scope="session")
def hub_server():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(hub_server, tmp_path_factory, monkeypatch):
    """An empty HubDouble with the user alice, who is logged in."""
    import datasets

    hub_server.reset()
    hub_server.add_user("alice", TOKEN)
    home = tmp_path_factory.mktemp("hf")
    changed = {
        "ENDPOINT": hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    for name, value in changed.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub_server.url)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub_server.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(online, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for forget in (forget_commits, forget_data_sets):
        forget()
    yield hub_server
    for forget in (forget_commits, forget_data_sets):
        forget()


@pytest.fixture
def log_out(hub, monkeypatch):
    """Log the user out."""
    monkeypatch.delenv("HF_TOKEN")


@pytest.fixture
def no_pauses(monkeypatch):
    """huggingface_hub waits a second before it asks again: not here."""
    from huggingface_hub.utils import _http

    patient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", patient)
