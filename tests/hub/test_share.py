"""Sharing runs: which files go up, and that they come back byte for byte."""

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model

from rlhf.commands import share as command
from rlhf.errors import UserError
from rlhf.hub.share import ADAPTER, BASE, CARD, SHARED, is_shared, preview, share_run
from rlhf.models.load import load_policy, save
from rlhf.models.lora import add_lora
from rlhf.models.snapshots import model_folder
from rlhf.runs.parents import home_of, model_digests, parent_entry
from rlhf.runs.public_names import public_record
from rlhf.runs.record import RunRecord
from tests.conftest import tiny_policy, word_tokenizer
from tests.hub.conftest import TOKEN


def make_run(folder: Path, recipe: str = "sft", **parents) -> Path:
    """The folder of a finished run with a tiny policy, and with files that stay here."""
    tokenizer = word_tokenizer()
    save(tiny_policy(tokenizer), tokenizer, folder)
    record = RunRecord.begin(recipe, config={"output_dir": str(folder)}, seed=0)
    record.parents = {role: parent_entry(str(path)) for role, path in parents.items()}
    record.status = "done"
    record.save(folder)
    (folder / "plots").mkdir()
    (folder / "plots" / "curves.png").write_bytes(b"\x89PNG\0")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (folder / "value_model").mkdir()
    (folder / "value_model" / "model.safetensors").write_bytes(b"\0\1")
    for name in (
        "checkpoint-2/model.safetensors",
        "checkpoint-2/optimizer.pt",
        "runs/events.out",
        "job.log",
        ".env",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0stays here")
    (folder / "training_args.bin").write_bytes(b"\0")
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "sft")


@pytest.fixture
def adapter(tmp_path, run):
    """The folder of a run that left LoRA matrices of the model of `run`."""
    folder = tmp_path / "runs" / "lora"
    folder.mkdir()
    torch.manual_seed(0)
    model = get_peft_model(
        load_policy(str(run)), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=2)
    )
    model.peft_config["default"].base_model_name_or_path = str(run)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    record = RunRecord.begin("sft", config={"use_peft": True}, seed=0)
    record.parents, record.status = {"base": parent_entry(str(run))}, "done"
    record.save(folder)
    return folder


def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([[2, 3, 4, 5]])).logits


def rlhf_share(*argv) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args([str(word) for word in argv]))


def test_what_is_shared_comes_back_byte_for_byte(hub, run):
    first = share_run(run, "sft")
    assert first.changed and not share_run(run, "sft").changed
    folder = Path(model_folder("alice/sft"))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # The pictures are for the card, and are not downloaded.
    assert names | {"plots/curves.png", ".gitattributes"} == hub.contents("alice/sft").keys()
    for name in names - {CARD, "run.json"}:
        assert (folder / name).read_bytes() == (run / name).read_bytes(), name
    # The record goes without the folders of this machine.
    assert json.loads((folder / "run.json").read_text()) == public_record(run)
    assert "value_model/model.safetensors" in names
    kept = b"".join(hub.contents("alice/sft").values())
    assert b"stays here" not in kept and TOKEN.encode() not in kept


@pytest.mark.parametrize("name", ["alice/sft", "sft"])
def test_the_card_names_the_repository_and_is_valid(hub, run, name):
    assert '"alice/sft"' in preview(run, name).card
    share_run(run, name)
    card = ModelCard.load("alice/sft")
    card.validate()
    assert '"alice/sft"' in card.text
    assert json.loads((run / SHARED).read_text())["repo"] == "alice/sft"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("value_model/tokenizer.json", True),
        ("adapter/trunk.json", True),
        ("plots/curves.png", True),
        ("checkpoint-8/config.json", False),
        ("value_model/checkpoint-8/config.json", False),
        ("report/report.json", False),
        ("optimizer.pt", False),
        ("pytorch_model.bin", False),
        ("run.log", False),
        ("notes.txt", False),
        (SHARED, False),
    ],
)
def test_only_what_a_run_writes_to_be_read_is_shared(name, expected):
    assert is_shared(name) == expected


def test_shards_of_an_earlier_model_are_not_shared_and_go_from_the_hub(hub, run):
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    whole = run / "model.safetensors"
    whole.rename(run / shards[0])
    (run / shards[1]).write_bytes(b"more")
    weight_map = dict(zip("ab", shards, strict=True))
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    share_run(run, "sft")
    sharded = {*shards, "model.safetensors.index.json"}
    assert sharded <= hub.contents("alice/sft").keys()
    # The same folder, trained again as one file by a version that left these.
    whole.write_bytes((run / shards[0]).read_bytes())
    (run / "value_model" / "model.safetensors.index.json").write_text("{}")
    share_run(run, "sft")
    names = hub.contents("alice/sft").keys()
    assert not sharded & names and "model.safetensors" in names
    assert "value_model/model.safetensors.index.json" not in names


def test_a_preview_sends_nothing_and_shows_what_is_pushed(hub, run, capsys):
    assert rlhf_share(run, "--repo", "alice/sft", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert not hub.requests
    seen = preview(run, "alice/sft")
    share_run(run, "alice/sft")
    contents = hub.contents("alice/sft")
    assert seen.card.encode() == contents[CARD] and seen.card in shown
    assert dict(seen.files) == {
        name: len(data) for name, data in contents.items() if name != ".gitattributes"
    }


def test_the_command_says_what_it_did(hub, run, capsys):
    rlhf_share(run, "--repo", "sft", "--private")
    assert f"{hub.url}/alice/sft (commit " in capsys.readouterr().out
    assert hub.repo("alice/sft").private
    rlhf_share(run, "--repo", "sft", "--private")
    assert "nothing was sent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["no/such", "--repo", "a"], "no/such: no such folder"),
        ([".", ".", "--repo", "a"], "only --space takes several"),
        ([".", "--repo", "a", "--space", "--type", "dataset"], "give one"),
        ([".", "--repo", "a", "--type", "dataset", "--merge"], "drop them"),
        ([".", "--repo", "a"], "no readable run.json"),
    ],
)
def test_flags_that_do_not_fit(argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        rlhf_share(*argv)


def test_a_run_that_did_not_end_is_not_shared(hub, run):
    record = RunRecord.load(run)
    record.status = "failed"
    record.save(run)
    with pytest.raises(UserError, match="finish the run first"):
        share_run(run, "sft")


# ---- parents ----


def test_parents_are_linked_where_they_were_shared(hub, run, tmp_path):
    reward = make_run(tmp_path / "runs" / "reward", "reward")
    ppo = make_run(tmp_path / "runs" / "ppo", "ppo", policy=run, reward=reward)
    share_run(ppo, "ppo")
    assert "base_model" not in ModelCard.load("alice/ppo").data.to_dict()
    share_run(run, "sft")
    assert share_run(ppo, "ppo").changed
    data = ModelCard.load("alice/ppo").data
    assert (data.base_model, data.base_model_relation) == ("alice/sft", "finetune")
    assert "alice/ppo-reward" not in {name for _, name in hub.repos}


def test_a_parent_that_was_trained_again_is_not_linked(hub, run, tmp_path):
    share_run(run, "sft")
    record = RunRecord.load(run)
    record.started = "2026-01-01T00:00:00Z"
    record.save(run)
    share_run(make_run(tmp_path / "runs" / "ppo", "ppo", policy=run), "ppo")
    assert "base_model" not in ModelCard.load("alice/ppo").data.to_dict()


@pytest.mark.slow
def test_parents_are_pushed_by_choice(hub, run, tmp_path):
    reward = make_run(tmp_path / "runs" / "reward", "reward", base=run)
    ppo = make_run(tmp_path / "runs" / "ppo", "ppo", policy=run, reward=reward)
    share_run(ppo, "alice/ppo", parents="push")
    names = {name for _, name in hub.repos}
    assert names == {"alice/ppo", "alice/ppo-policy", "alice/ppo-reward"}
    card = ModelCard.load("alice/ppo")
    card.validate()
    assert card.data.base_model == "alice/ppo-policy" and "[alice/ppo-reward]" in card.text
    assert ModelCard.load("alice/ppo-reward").data.base_model == "alice/ppo-policy"
    assert not share_run(ppo, "alice/ppo", parents="push").changed


# ---- LoRA ----


def test_an_adapter_needs_its_base_on_the_hub(hub, adapter, run):
    with pytest.raises(UserError, match="share that first, or use --merge"):
        share_run(adapter, "lora")
    share_run(run, "sft")
    share_run(adapter, "lora")
    assert (
        json.loads(hub.contents("alice/lora")["adapter_config.json"])["base_model_name_or_path"]
        == "alice/sft"
    )
    assert "model.safetensors" not in hub.contents("alice/lora")
    assert torch.equal(logits(load_policy("alice/lora")), logits(load_policy(str(adapter))))
    assert ModelCard.load("alice/lora").data.base_model_relation == "adapter"


def test_a_merged_adapter_has_the_same_logits(hub, adapter):
    share_run(adapter, "merged", merge=True)
    assert not [name for name in hub.contents("alice/merged") if name.startswith("adapter_")]
    merged = load_policy("alice/merged")
    assert torch.allclose(logits(merged), logits(load_policy(str(adapter))), atol=1e-6)
    # Going from one form to the other leaves nothing of the first.
    assert not share_run(adapter, "merged", merge=True).changed


def test_a_whole_model_cannot_be_merged(hub, run):
    with pytest.raises(UserError, match="drop --merge"):
        share_run(run, "sft", merge=True)


# ---- runs that were trained again, repositories that were removed ----


def train_again(folder: Path) -> None:
    """Let the folder of a run hold the finished run of another day, with other weights."""
    model = load_policy(str(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.save_pretrained(folder)
    record = RunRecord.load(folder)
    record.started, record.weights = "2026-01-02T00:00:00Z", model_digests(folder)
    record.save(folder)


def test_nothing_of_an_earlier_run_stays(hub, run, adapter):
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"\0")
    (run / "samples.jsonl").write_text('{"prompt": "a"}\n')
    share_run(run, "sft")
    share_run(run, "x")
    share_run(adapter, "x")
    stale = {"adapter/adapter_model.safetensors", "samples.jsonl", "metrics.jsonl", "config.json"}
    assert stale <= hub.contents("alice/sft").keys() and not stale & hub.contents("alice/x").keys()


@pytest.mark.parametrize("parents", ["link", "push"])
def test_a_parent_that_holds_other_weights_by_now_is_none(hub, run, tmp_path, parents):
    ppo = make_run(tmp_path / "runs" / "ppo", "ppo", policy=run)
    train_again(run)
    share_run(run, "sft")
    if parents == "push":  # and was not shared from this machine
        (run / SHARED).unlink()
    share_run(ppo, "ppo", parents=parents)
    assert {name for _, name in hub.repos} == {"alice/ppo", "alice/sft"}
    assert b"alice/sft" not in hub.contents("alice/ppo")[CARD]


def test_runs_that_came_from_each_other_in_turn_are_shared_once(hub, run, tmp_path):
    ppo = make_run(tmp_path / "runs" / "ppo", "ppo", policy=run)
    record = RunRecord.load(run)
    record.parents = {"base": parent_entry(str(ppo))}
    record.save(run)
    share_run(ppo, "ppo", parents="push")
    assert {name for _, name in hub.repos} == {"alice/ppo", "alice/ppo-policy"}


def test_a_parent_whose_repository_was_removed_is_shared_again(hub, run, tmp_path):
    share_run(run, "sft")
    HfApi().delete_repo("alice/sft")
    share_run(make_run(tmp_path / "runs" / "ppo", "ppo", policy=run), "ppo", parents="push")
    assert {name for _, name in hub.repos} == {"alice/ppo", "alice/ppo-policy"}


def test_an_adapter_keeps_the_commit_of_its_base(hub, adapter, run):
    expected = logits(load_policy(str(adapter)))
    # On a branch, and overwritten later.
    commit = share_run(run, "sft", revision="trial").commit
    share_run(adapter, "lora")
    assert json.loads(hub.contents("alice/lora")["adapter_config.json"])["revision"] == commit
    assert torch.equal(logits(load_policy("alice/lora")), expected)


def test_an_adapter_whose_base_was_trained_again_is_not_shared(hub, adapter, run):
    train_again(run)
    share_run(run, "sft")
    for merge in (False, True):
        with pytest.raises(UserError, match="was trained again since"):
            share_run(adapter, "lora", merge=merge)


def test_an_adapter_whose_base_was_removed_is_not_shared(hub, adapter, run):
    share_run(run, "sft")
    HfApi().delete_repo("alice/sft")
    with pytest.raises(UserError, match="alice/sft, is not on the Hub: share that first"):
        share_run(adapter, "lora")


def test_an_adapter_of_a_base_with_a_revision(hub, run, adapter):
    commit = hub.put_folder("bob/base", run)
    hub.repo("bob/base").refs["v/1"] = commit
    hub.put("bob/base", {"config.json": b"broken"})
    model = add_lora(load_policy("bob/base@v/1"), task="CAUSAL_LM", rank=2, alpha=4)
    model.save_pretrained(adapter)
    share_run(adapter, "lora")
    for config in ((adapter / ADAPTER).read_bytes(), hub.contents("alice/lora")[ADAPTER]):
        config = json.loads(config)
        assert (config[BASE], config["revision"]) == ("bob/base", commit)
    assert torch.equal(logits(load_policy("alice/lora")), logits(load_policy(str(adapter))))


@pytest.mark.slow
def test_the_same_pull_request_is_opened_once(hub, run):
    share_run(run, "sft")
    assert not share_run(run, "sft", pr=True).changed  # it would be empty
    train_again(run)
    first, second = share_run(run, "sft", pr=True), share_run(run, "sft", pr=True)
    assert first.changed and not second.changed
    assert (first.url, first.commit) == (second.url, second.commit)
    train_again(run)
    assert share_run(run, "sft", pr=True).url.endswith("/discussions/2")


def test_parents_of_a_run_are_seen_from_within_its_folder(tmp_path, monkeypatch):
    child, parent = tmp_path / "ppo", tmp_path / "sft"
    child.mkdir()
    parent.mkdir()
    monkeypatch.chdir(child)
    assert home_of("runs/sft", Path(".")) == parent
