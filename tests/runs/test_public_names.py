"""The names that a shared card and record show: Hub ids, and no folders of this machine."""

import json
import shlex

import pytest

from rlhf.runs.ancestry import base_model, lineage
from rlhf.runs.card import card_text
from rlhf.runs.parents import hub_id_of
from rlhf.runs.public_names import PublicNames, public_record, write_public
from rlhf.runs.record import RunRecord
from tests.runs.lineage_runs import make_stages


@pytest.fixture
def stages(tmp_path):
    return make_stages(tmp_path / "secret-customer" / "runs")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/me/runs/sft", "sft"),
        ("/home/me/runs/sft/", "sft"),
        ("~/runs/sft", "sft"),
        ("../other/sft", "sft"),
        ("C:\\Users\\me\\sft", "sft"),
        ("runs/sft", "runs/sft"),
        ("user/sft", "user/sft"),
        ("gpt2", "gpt2"),
    ],
)
def test_absolute_paths_are_shown_by_their_last_part(stages, name, shown):
    assert PublicNames(lineage(stages.ppo))(name) == shown


def test_a_parent_that_was_pushed_goes_by_its_hub_id(stages):
    note = {"repo": "me/sft", "started": RunRecord.load(stages.sft).started}
    (stages.sft / "hub.json").write_text(json.dumps(note))
    assert hub_id_of(stages.sft) == "me/sft"
    names = PublicNames(lineage(stages.ppo), {str(stages.reward): "me/reward"})
    assert names(str(stages.sft)) == "me/sft" and names(str(stages.reward)) == "me/reward"
    command = shlex.join(["rlhf", "ppo", "--model_name_or_path", str(stages.sft), "--x=/a/b c/d"])
    assert names.command(command) == "rlhf ppo --model_name_or_path me/sft --x=d"


def test_a_folder_that_holds_another_run_since_is_not_on_the_hub(stages):
    note = {"repo": "me/sft", "started": "2020-01-01T00:00:00Z"}
    (stages.sft / "hub.json").write_text(json.dumps(note))
    assert hub_id_of(stages.sft) == ""
    note["started"] = RunRecord.load(stages.sft).started
    (stages.sft / "hub.json").write_text(json.dumps(note))
    assert hub_id_of(stages.sft) == "me/sft" and hub_id_of(stages.sft, "0" * 64) == ""


def test_a_command_with_an_open_quote_shows_no_path(stages):
    assert PublicNames(lineage(stages.ppo)).command("rlhf ppo '/home/me/x") == "rlhf ppo 'x"


def test_only_a_path_is_replaced(stages):
    names = PublicNames(lineage(stages.ppo))
    value = {"system": "/help me", "rate": 0.5, "list": ["/home/me/a.jsonl"], "/home/me/t": 1}
    assert names.value(value) == {"system": "/help me", "rate": 0.5, "list": ["a.jsonl"], "t": 1}


def test_neither_card_nor_record_name_a_private_folder(stages):
    record = RunRecord.load(stages.ppo)
    record.config |= {"reward_model_path": [str(stages.reward)], "hub_token": "hf_" + "a" * 30}
    record.command += f" --hub_token hf_{'b' * 30}"
    record.error = f"{stages.sft}/model.safetensors cannot be read"
    record.parts = [{"command": record.command, "seconds": 1.0}]
    record.metrics = {"compared": {str(stages.tokenizer): {"rate": 0.5}}}
    record.save(stages.ppo)
    (stages.ppo / "samples.jsonl").write_text(json.dumps({"tokenizer": str(stages.tokenizer)}))
    shared = public_record(stages.ppo, {str(stages.sft): "me/sft"})
    text = json.dumps(shared)
    card = card_text(stages.ppo, model_id="me/ppo", hub_ids={str(stages.sft): "me/sft"})
    for content in (text, card):
        assert "secret-customer" not in content and "hf_a" not in content and "hf_b" not in content
        assert "me/sft" in content
    assert "base_model: me/sft" in card and "base_model_relation: finetune" in card


def test_a_shared_record_gives_the_same_lineage(stages, tmp_path):
    """Its keys, which hold paths, still belong to its parents."""
    folder = tmp_path / "pulled"
    folder.mkdir()
    content = public_record(stages.ppo)
    (folder / "run.json").write_text(json.dumps(content))
    expected = [(depth, node.stage, node.sha256) for depth, node in lineage(stages.ppo).walk()]
    pulled = [(depth, node.stage, node.sha256) for depth, node in lineage(folder).walk()]
    assert pulled == expected
    content = public_record(stages.ppo, {str(stages.sft): "me/sft"})
    (folder / "run.json").write_text(json.dumps(content))
    nodes = {node.stage: node for _, node in lineage(folder).walk()}
    assert nodes["policy"].is_on_hub and nodes["policy"].name == "me/sft"
    assert not nodes["reward"].is_on_hub
    assert base_model(folder, RunRecord.load(folder)) == "me/sft"


def test_what_is_shared_is_byte_for_byte_the_same_where_nothing_is_private(stages, tmp_path):
    record = RunRecord("sft", command="rlhf sft", config={"output_dir": "runs/sft"}, status="done")
    record.save(tmp_path / "sft")
    (tmp_path / "sft" / "samples.jsonl").write_text('{"step": 1, "prompt": "가"}\n')
    (tmp_path / "shared").mkdir()
    write_public(tmp_path / "sft", tmp_path / "shared")
    for name in ("run.json", "samples.jsonl"):
        original = (tmp_path / "sft" / name).read_bytes()
        assert (tmp_path / "shared" / name).read_bytes() == original
    (stages.ppo / "samples.jsonl").write_text(json.dumps({"tokenizer": str(stages.tokenizer)}))
    write_public(stages.ppo, tmp_path / "shared")
    assert "secret-customer" not in (tmp_path / "shared" / "samples.jsonl").read_text()


def test_the_same_run_gives_the_same_record_and_card(stages):
    assert public_record(stages.ppo) == public_record(stages.ppo)
    assert card_text(stages.ppo) == card_text(stages.ppo)
