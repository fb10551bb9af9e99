"""Names of the Hub wherever a run is read: pinned to a commit, checked, and there without the network afterwards."""

import json

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from rlhf.errors import UserError
from rlhf.models import snapshots
from rlhf.models.load import load_policy, load_reward_model, load_tokenizer, save
from rlhf.models.snapshots import hub_commit, model_folder, split_revision
from tests.conftest import tiny_policy, word_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny policy with its tokenizer."""
    root = tmp_path_factory.mktemp("policy")
    tokenizer = word_tokenizer()
    save(tiny_policy(tokenizer), tokenizer, root)
    return root


@pytest.fixture
def tiny(hub, folder):
    """The name of that policy on the Hub."""
    hub.put_folder("bob/tiny", folder)
    return "bob/tiny"


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in model.state_dict().values()])


def same_bytes(hub, name: str, folder: str) -> bool:
    names = [name for name in hub.contents(name) if not name.startswith(".")]
    return all((snapshots.Path(folder) / n).read_bytes() == hub.contents(name)[n] for n in names)


def test_a_model_and_its_tokenizer_are_those_that_were_pushed(tiny, hub, folder):
    loaded = load_policy(tiny)
    assert torch.equal(weights(loaded), weights(load_policy(str(folder))))
    tokenizer = load_tokenizer(tiny)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    assert (loaded.name_or_path, tokenizer.name_or_path) == (tiny, tiny)
    assert same_bytes(hub, tiny, model_folder(tiny))


def test_a_commit_is_pinned_for_the_process_and_recorded(tiny, hub):
    first = hub.repo(tiny).refs["main"]
    load_tokenizer(tiny)
    hub.put(tiny, {"tokenizer.json": b"broken"})
    load_policy(tiny)
    load_tokenizer(tiny)
    assert hub_commit(tiny) == first
    snapshots.forget_commits()
    with pytest.raises(UserError, match="bob/tiny: cannot be loaded"):
        load_tokenizer(tiny)
    load_tokenizer(f"{tiny}@{first}")
    load_tokenizer(tiny, revision=first)


def test_a_branch_and_a_tag_after_at(tiny, hub):
    hub.repo(tiny).refs["v1"] = hub.repo(tiny).refs["main"]
    hub.put(tiny, {"config.json": b"broken"})
    load_policy(f"{tiny}@v1")
    assert hub_commit(f"{tiny}@v1") == hub.repo(tiny).refs["v1"]
    assert split_revision("a/b@v1", "v1") == ("a/b", "v1")
    with pytest.raises(UserError, match="also given as v2"):
        split_revision("a/b@v1", "v2")


def test_offline_after_one_download(tiny, hub, monkeypatch):
    load_policy(tiny)
    commit = hub_commit(tiny)
    requests = len(hub.requests)
    snapshots.forget_commits()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_policy(tiny)
    load_tokenizer(tiny)
    load_policy(f"{tiny}@{commit}")
    assert hub_commit(tiny) == commit and len(hub.requests) == requests
    with pytest.raises(UserError, match="nor downloaded before"):
        load_policy("bob/other")


def test_no_network_after_one_download(tiny, hub, monkeypatch):
    load_policy(tiny)
    snapshots.forget_commits()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    load_policy(tiny)


def test_a_private_model_is_for_its_owner(hub, folder, monkeypatch):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.put("alice/secret", files, private=True)
    load_policy("alice/secret")
    snapshots.forget_commits()
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(UserError, match="alice/secret: the Hub does not know this token"):
        model_folder("alice/secret")
    monkeypatch.delenv("HF_TOKEN")
    snapshots.forget_commits()
    with pytest.raises(UserError, match="or a private one"):
        model_folder("alice/secret")


# ---- what is refused ----


def test_pickles_are_not_downloaded(hub):
    hub.put("bob/old", {"config.json": b'{"model_type": "gpt2"}', "pytorch_model.bin": b"\x80"})
    with pytest.raises(UserError, match=r"pickles only \(pytorch_model.bin\)"):
        load_policy("bob/old")
    assert not [line for line in hub.requests if "pytorch_model.bin" in line]


def test_a_pickle_next_to_safetensors_is_passed_over(tiny, hub):
    hub.put(tiny, {"pytorch_model.bin": b"\x80", "modeling.py": b"raise SystemExit"})
    folder = model_folder(tiny)
    assert not list(snapshots.Path(folder).glob("*.bin")) + list(
        snapshots.Path(folder).glob("*.py")
    )


def test_code_of_the_hub_is_not_run(hub):
    config = {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "m.Strange"}}
    hub.put(
        "bob/code",
        {"config.json": json.dumps(config).encode(), "model.safetensors": b"x", "m.py": b"x"},
    )
    with pytest.raises(UserError, match="needs Python code of its own repository"):
        load_policy("bob/code")
    assert not [
        line for line in hub.requests if line.startswith("GET /bob/code/resolve/") and ".py" in line
    ]


def test_code_of_a_folder_is_not_run(tmp_path):
    config = {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "m.Strange"}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "m.C"}}))
    with pytest.raises(UserError, match="never run here"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bob/none", "no such repository on the Hub, or a private one"),
        ("bob/tiny@v9", "no such branch, tag or commit"),
        ("bob/tokenizer", "no weights as safetensors"),
    ],
)
def test_what_is_not_there(tiny, hub, name, said):
    hub.put("bob/tokenizer", {"tokenizer.json": b"{}"})
    with pytest.raises(UserError, match=said):
        load_reward_model(name) if "tokenizer" not in name else model_folder(name)


# ---- faults ----


LOOK_UP, CONFIG, HEADERS, CONTENT = (
    "GET /api/models",
    "GET .*config.json",
    "(HEAD|GET) .*safetensors",
    "GET /cdn",
)
FAULTS = [
    (LOOK_UP, 429),
    (CONFIG, 500),
    (HEADERS, "etag"),
    (CONTENT, "cut"),
    (CONTENT, "drop"),
    (CONTENT, 503),
]
OTHERS = []
for where in (LOOK_UP, CONFIG, HEADERS, CONTENT):
    for what in (429, 500, 503, "cut", "etag", "slow", "drop"):
        is_of_files = what in ("cut", "etag")
        if (where, what) not in FAULTS and not (is_of_files and where == LOOK_UP):
            OTHERS.append(pytest.param(where, what, marks=pytest.mark.slow))


@pytest.mark.parametrize(("where", "what"), FAULTS + OTHERS)
def test_a_fault_ends_in_the_right_bytes(tiny, hub, where, what, no_pauses):
    hub.fail(where, what, seconds=0.05)
    assert same_bytes(hub, tiny, model_folder(tiny))


def test_a_file_that_arrives_damaged_is_named(tiny, hub, folder):
    [sha] = hub.large
    hub.large[sha] = hub.large[sha][:-4] + b"evil"
    with pytest.raises(UserError, match=r"model.safetensors arrived with another content"):
        model_folder(tiny)
    hub.large[sha] = (folder / "model.safetensors").read_bytes()
    assert same_bytes(hub, tiny, model_folder(tiny))


def test_a_model_without_a_tokenizer_says_so(tiny, hub, tmp_path):
    files = hub.repo(tiny).files()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        del files[name]
    with pytest.raises(UserError, match="bob/tiny: it holds no tokenizer"):
        load_tokenizer(tiny)
