"""`rlhf lineage`: the tree in the terminal, and the verification of every hash behind it."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest

from rlhf.__main__ import main
from rlhf.errors import UserError
from rlhf.feedback.store import Store
from rlhf.hub.lineage import lineage, mermaid, run_folder, verify
from rlhf.runs.record import RunRecord
from tests.runs.lineage_runs import add_event, make_feedback, make_run, make_stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_stages(tmp_path_factory.mktemp("made") / "runs")


@pytest.fixture
def stages(tmp_path):
    return make_stages(tmp_path / "runs")


def not_same(checks) -> list[tuple[str, str, str]]:
    return [(check.stage, check.file, check.state) for check in checks if check.state != "same"]


def test_what_was_not_touched_is_the_same(made, capsys):
    checks = verify(made.ppo)
    assert not_same(checks) == []
    # ppo, sft with two shards, base and reward, each with a tokenizer; the tokenizer; three files and the store twice
    assert len(checks) == len(set(checks)) == (2 + 3 + 2 + 2 + 1) + 3 + 2
    assert main(["lineage", str(made.ppo), "--verify"]) == 0
    assert capsys.readouterr().out == f"{len(checks)} same\n"


def test_a_changed_shard_is_named(stages, capsys):
    (stages.sft / "model-00002-of-00002.safetensors").write_text("other")
    expected = ("policy", "model-00002-of-00002.safetensors", "differs")
    assert not_same(verify(stages.ppo)) == [expected]
    assert main(["lineage", str(stages.ppo), "--verify"]) == 1
    assert f"{stages.sft}: model-00002-of-00002.safetensors" in capsys.readouterr().out


def test_a_missing_file_and_a_missing_folder_are_named(stages):
    (stages.base / "tokenizer.json").unlink()
    shutil.rmtree(stages.reward)
    assert not_same(verify(stages.ppo)) == [
        ("base", "tokenizer.json", "missing"),
        ("reward", "", "missing"),
    ]


def test_the_weights_of_the_run_itself_are_checked(stages):
    (stages.ppo / "model.safetensors").write_text("other")
    assert not_same(verify(stages.ppo)) == [("this run", "model.safetensors", "differs")]


def test_a_renamed_folder_is_known_by_its_weights(stages):
    stages.sft.rename(stages.home / "sft_old")
    assert not_same(verify(stages.ppo)) == [("policy", "", "moved")]
    [check] = [check for check in verify(stages.ppo) if check.state == "moved"]
    assert str(stages.home / "sft_old") in str(check)


def test_a_project_that_was_moved_as_a_whole_is_moved_and_not_missing(stages):
    moved = stages.home.rename(stages.home.with_name("moved"))
    assert {state for _, _, state in not_same(verify(moved / "ppo"))} == {"moved"}


def test_a_store_that_moved_with_the_project_is_moved(tmp_path):
    """The store was next to the folder of the runs, and not in it."""
    store = make_feedback(tmp_path / "old" / "feedback")
    make_run(tmp_path / "old" / "runs" / "reward", "reward", data=[store])
    moved = (tmp_path / "old").rename(tmp_path / "new")
    states = not_same(verify(moved / "runs" / "reward"))
    assert sorted(states) == [("data", "", "moved"), ("feedback", "", "moved")]


def test_added_events_are_not_a_change_but_removed_ones_are(stages):
    add_event(Store(stages.feedback), 7)
    path = stages.feedback / "events.jsonl"
    checks = [check for check in verify(stages.ppo) if check.stage == "feedback"]
    assert [check.state for check in checks] == ["grown"] and "2 events" in checks[0].note
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    assert ("feedback", "events.jsonl", "differs") in not_same(verify(stages.ppo))


def test_changed_rows_are_named(stages):
    stages.files["sft.jsonl"].write_text("{}")
    assert not_same(verify(stages.ppo)) == [("data", "sft.jsonl", "differs")]


def test_an_older_record_is_said_not_to_be_checked(stages):
    record = RunRecord.load(stages.tokenizer)
    record.weights, record.data = {}, [{"name": "text.txt", "rows": 3, "sha256": "ab"}]
    record.save(stages.tokenizer)
    checks = verify(stages.tokenizer)
    assert {check.state for check in checks} == {"not checked"} and len(checks) == 2


def test_what_the_hub_says_about_a_parent_is_compared(stages, monkeypatch, tmp_path):
    """Of files that are not in the cache the Hub names the sha256, if they are large."""
    record = RunRecord.load(stages.ppo)
    weights = RunRecord.load(stages.sft).weights
    names = sorted(weights["files"])
    record.parents = {"policy": {"name": "user/sft", "revision": "c" * 40, **weights}}
    record.ancestors, record.data = {}, []
    record.save(stages.ppo)
    siblings = [
        SimpleNamespace(rfilename=names[0], lfs=SimpleNamespace(sha256=weights["files"][names[0]])),
        SimpleNamespace(rfilename=names[1], lfs=SimpleNamespace(sha256="0" * 64)),
        SimpleNamespace(rfilename=names[2], lfs=None),
    ]
    asked = []

    def model_info(self, repo, *, revision, files_metadata):
        asked.append((repo, revision, files_metadata))
        return SimpleNamespace(siblings=siblings)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    states = [check.state for check in verify(stages.ppo) if check.stage == "policy"]
    assert states == ["same", "differs", "not checked"]
    assert asked == [("user/sft", "c" * 40, True)]


def test_without_the_hub_a_parent_of_it_is_not_checked(stages):
    record = RunRecord.load(stages.ppo)
    record.parents = {"policy": {"name": "user/sft", "revision": "c" * 40, "files": {"a": "b"}}}
    record.save(stages.ppo)
    assert ("policy", "a", "not checked") in not_same(verify(stages.ppo))


def test_the_tree_in_the_terminal_has_every_whole_hash(made, capsys):
    assert main(["lineage", str(made.ppo)]) == 0
    said = capsys.readouterr().out
    for folder in (made.ppo, made.base, made.sft, made.reward, made.tokenizer):
        assert RunRecord.load(folder).weights["sha256"] in said, folder
    assert f"base: {made.sft}, as above" in said and "2 events" in said
    assert main(["lineage", str(made.ppo), "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")


def test_marks_of_rich_in_a_name_are_shown_as_they_are(tmp_path, capsys):
    RunRecord("sft", data=[{"name": "[bold]x[/bold].jsonl", "rows": 1}]).save(tmp_path)
    assert main(["lineage", str(tmp_path)]) == 0
    assert "[bold]x[/bold].jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no/such/run", "./gone", "user/model"])
def test_a_name_that_is_no_run_says_what_to_do(name, capsys):
    with pytest.raises(UserError, match="no such folder"):
        run_folder(name)
    assert main(["lineage", name]) == 2


def test_a_folder_without_a_record_says_what_to_do(tmp_path, capsys):
    assert main(["lineage", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loop_of_many_rounds_has_each_model_once(tmp_path):
    """Each round has two parents that go back to the one before: paths double, models do not."""
    ppo = make_run(tmp_path / "sft", "sft")
    for i in range(20):
        reward = make_run(tmp_path / f"reward{i}", "reward", parents=[("base", ppo)])
        parents = [("policy", ppo), ("reward", reward)]
        ppo = make_run(tmp_path / f"ppo{i}", "ppo", parents=parents)
    nodes = len(list(lineage(ppo).walk()))
    assert nodes == 1 + 3 * 20
    assert len({check.name for check in verify(ppo)}) == 1 + 2 * 20
    assert mermaid(lineage(ppo)).count("-->") == 3 * 20
