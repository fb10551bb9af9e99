"""Data sets of the Hub: pinned to a commit that the record names, streamed where few rows are wanted."""

import datasets
import pytest
from huggingface_hub import constants
from transformers import TrainingArguments

from rlhf.data import hub as data_hub
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.runs.parents import data_entry
from rlhf.runs.run import recording
from rlhf.runs.settings import DataSettings
from tests.data.test_splits import settings

KINDS = ("classification",)


@pytest.fixture
def films(hub, tmp_path):
    """The name of a data set with names of classes, in two splits of parquet files."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    files = {}
    for split, count in (("train", 6), ("test", 2)):
        rows = {
            "text": [f"{split} {i}" for i in range(count)],
            "label": [i % 2 for i in range(count)],
        }
        path = tmp_path / f"{split}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        files[f"data/{split}-00000-of-00001.parquet"] = path.read_bytes()
    hub.put("bob/films", files, kind="datasets")
    return "bob/films"


def downloads(hub) -> int:
    return len([line for line in hub.requests if line.startswith("GET /cdn")])


def test_the_record_names_the_commit(films, hub):
    splits = load_splits(settings(films, dataset_test_split="test"), KINDS, seed=0)
    assert list(splits.train)[1] == {"text": "train 1", "label": "good"}
    commit = hub.repo(films, "datasets").refs["main"]
    assert [(s["name"], s["rows"], s["revision"]) for s in splits.sources] == [
        (films, 6, commit),
        (films, 2, commit),
    ]


def test_a_revision_after_at(films, hub):
    commit = hub.repo(films, "datasets").refs["main"]
    hub.put(films, {"data/train-00000-of-00001.parquet": b"broken"}, kind="datasets")
    loaded = load_rows(f"{films}@{commit}", kinds=KINDS)
    assert len(loaded.rows) == 6 and (loaded.name, loaded.revision) == (films, commit)
    with pytest.raises(UserError, match="neither a local file or folder nor a data set reachable"):
        load_rows(films, kinds=KINDS)
    with pytest.raises(UserError, match="no such branch, tag or commit"):
        load_rows(f"{films}@v9", kinds=KINDS)


def test_offline_after_one_download(films, hub, monkeypatch):
    online = load_rows(films, kinds=KINDS)
    data_hub.forget_commits()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    requests = len(hub.requests)
    offline = load_rows(films, kinds=KINDS)
    assert list(offline.rows) == list(online.rows) and offline.revision == online.revision
    assert len(hub.requests) == requests


def test_the_first_rows_are_streamed(films, hub):
    loaded = load_rows(films, kinds=KINDS, limit=2)
    assert [row["label"] for row in loaded.rows] == ["bad", "good"] and loaded.revision
    assert not list((datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))


@pytest.mark.parametrize("what", [429, 503, "drop"])
def test_a_busy_hub_is_asked_again(films, hub, what, no_pauses):
    hub.fail("GET /api/datasets", what)
    assert len(load_rows(films, kinds=KINDS).rows) == 6
    assert not hub.faults[0].times


def test_a_private_data_set_is_for_its_owner(films, hub, monkeypatch):
    hub.repo(films, "datasets").private = True
    with pytest.raises(UserError, match="or a private one"):
        load_rows(films, kinds=KINDS)


def test_configs_to_choose_from_are_named(hub):
    card = b"---\nconfigs:\n- {config_name: old, data_files: a.jsonl}\n- {config_name: new, data_files: b.jsonl}\n---\n"
    row = b'{"text": "a"}\n'
    hub.put("bob/both", {"README.md": card, "a.jsonl": row, "b.jsonl": row + row}, kind="datasets")
    with pytest.raises(UserError, match=r"pick one among the available configs: \['old', 'new'\]"):
        list(data_hub.hub_rows("bob/both", None, None))
    assert len(list(data_hub.hub_rows("bob/both", "new", None))) == 2


@pytest.mark.parametrize(
    ("card", "facts"),
    [
        ("---\nlicense: cc-by-4.0\nlanguage: en\n---\n", {"license": "cc-by-4.0"}),
        (
            "---\nlicense: other\nlicense_name: our-terms\n---\n",
            {"license": "other", "license_name": "our-terms"},
        ),
        ("---\ntags: [x]\n---\n", {"license": ""}),
        (None, {"license": ""}),
    ],
)
def test_the_record_has_the_licence_of_the_card(films, hub, monkeypatch, card, facts):
    if card:
        hub.put(films, {"README.md": card.encode()}, kind="datasets")
    source = load_rows(films, kinds=KINDS).sources[0]
    assert data_entry(source) == source | facts
    # Again without the network.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert data_entry(source) == source | facts


def test_a_run_warns_of_data_without_a_licence(films, hub, tmp_path, capsys):
    args = TrainingArguments(output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True)
    with recording("tokenizer", DataSettings(dataset_name=films), args) as run:
        run.data(load_splits(settings(films, eval_fraction=0.0), KINDS, seed=0))
    said = capsys.readouterr().out
    assert said.count(f"warning: {films} states no licence on the Hub") == 1
    assert run.record.data[0]["license"] == ""
