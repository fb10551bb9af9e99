"""What a record holds about the models, feedback and data that a run came from."""

import hashlib
import json
import os
import shutil

import pytest
from huggingface_hub import constants
from rich.console import Console

from rlhf.digests import weights_sha256
from rlhf.feedback.models import model_used
from rlhf.feedback.store import Store
from rlhf.hub.lineage import tree
from rlhf.runs.ancestry import base_model, lineage, lines, mermaid
from rlhf.runs.card import card_text
from rlhf.runs.parents import card_facts, entry_key, feedback_entry, model_digests, parent_entry
from rlhf.runs.public_names import public_record
from rlhf.runs.record import RunRecord
from tests.runs.lineage_runs import ROWS, add_event, make_feedback, make_run, make_stages


def digest(*contents: str) -> str:
    digests = [hashlib.sha256(content.encode()).digest() for content in contents]
    if len(digests) == 1:
        return digests[0].hex()
    return hashlib.sha256(b"".join(digests)).hexdigest()


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return make_stages(tmp_path_factory.mktemp("stages") / "runs")


@pytest.fixture
def cached_model(tmp_path, monkeypatch):
    """f(name, commit): the folder of a model in a cache of the Hub, where main is this commit."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def cached_model(name: str, commit: str):
        storage = cache / f"models--{name.replace('/', '--')}"
        folder = storage / "snapshots" / commit
        folder.mkdir(parents=True)
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / "main").write_text(commit)
        return folder

    return cached_model


def test_records_events_and_lineage_share_one_digest_of_all_shards(stages):
    contents = [f"the weights of sft {number}" for number in (1, 2)]
    assert weights_sha256(stages.sft) == digest(*contents)
    assert parent_entry(str(stages.sft))["sha256"] == digest(*contents)
    assert model_used("sft", stages.sft).revision == digest(*contents)
    assert RunRecord.load(stages.sft).weights["sha256"] == digest(*contents)


def test_pickled_shards_count_where_there_are_no_others(tmp_path):
    for number in (1, 2):
        (tmp_path / f"pytorch_model-0000{number}-of-00002.bin").write_text(str(number))
    assert weights_sha256(tmp_path) == digest("1", "2")
    (tmp_path / "model.safetensors").write_text("3")
    assert weights_sha256(tmp_path) == digest("3")


def test_the_lineage_of_a_ppo_run_names_every_stage_to_the_hash(stages):
    listed = {(line.stage, line.name): line.sha256 for line in lines(lineage(stages.ppo))}
    assert listed == {
        ("this run", str(stages.ppo)): digest("the weights of ppo 1"),
        ("data", str(stages.files["prompts.jsonl"])): ROWS,
        ("policy", str(stages.sft)): weights_sha256(stages.sft),
        ("data", str(stages.files["sft.jsonl"])): ROWS,
        ("base", str(stages.base)): digest("the weights of base 1"),
        ("data", str(stages.files["text.txt"])): ROWS,
        ("tokenizer", str(stages.tokenizer)): digest('{"words": "a b"}'),
        ("reward", str(stages.reward)): digest("the weights of reward 1"),
        ("base", str(stages.sft)): weights_sha256(stages.sft),
        ("data", str(stages.feedback)): ROWS,
        ("feedback", str(stages.feedback)): digest((stages.feedback / "events.jsonl").read_text()),
    }


def test_the_lineage_is_in_the_record_alone(tmp_path):
    stages = make_stages(tmp_path / "runs")
    before = lines(lineage(stages.ppo))
    for folder in (stages.base, stages.sft, stages.reward, stages.tokenizer, stages.feedback):
        shutil.rmtree(folder)
    assert lines(lineage(stages.ppo)) == before


def test_a_record_of_an_older_version_is_followed_through_the_folders(tmp_path):
    stages = make_stages(tmp_path / "runs")
    before = [(line.stage, line.name) for line in lines(lineage(stages.ppo))]
    for folder in (stages.ppo, stages.sft, stages.reward, stages.base):
        path = folder / "run.json"
        content = json.loads(path.read_text())
        del content["ancestors"], content["weights"]
        path.write_text(json.dumps(content))
    assert [(line.stage, line.name) for line in lines(lineage(stages.ppo))] == before


def test_a_parent_that_was_trained_again_keeps_its_old_history(tmp_path):
    base = make_run(tmp_path / "base", "pretrain")
    sft = make_run(tmp_path / "sft", "sft", parents=[("base", base)])
    shutil.rmtree(base)
    (tmp_path / "text.txt").write_text("text")
    make_run(base, "pretrain", data=[tmp_path / "text.txt"], content="others")
    path = sft / "run.json"
    content = json.loads(path.read_text())
    assert content["ancestors"]
    # Without the history of its own, the folder would be read, which holds another model.
    content["ancestors"] = {}
    path.write_text(json.dumps(content))
    assert [line.stage for line in lines(lineage(sft))] == ["this run", "base"]


def test_a_loop_of_rounds_does_not_blow_up_the_record(tmp_path):
    """Each round has two parents with the whole history behind them."""
    policy = make_run(tmp_path / "p0", "sft")
    sizes = []
    for number in range(1, 9):
        reward = make_run(tmp_path / f"r{number}", "reward", parents=[("base", policy)])
        policy = make_run(
            tmp_path / f"p{number}", "ppo", parents=[("policy", policy), ("reward", reward)]
        )
        sizes.append(len(lines(lineage(policy))))
    steps = [after - before for before, after in zip(sizes, sizes[1:], strict=False)]
    assert len(set(steps)) == 1  # lines are added, and not doubled
    assert len(RunRecord.load(policy).ancestors) == 16


def test_a_chain_of_many_rounds_is_drawn_and_written(tmp_path):
    """Far more rounds than Python calls may be within each other."""
    rounds = 1050
    entries = []
    for i in range(rounds + 1):
        entries.append({"name": f"/gone/p{i}", "sha256": f"{i:064}", "recipe": "ppo"})
    ancestors = {}
    for before, entry in zip(entries, entries[1:], strict=False):
        ancestors[entry_key(entry)] = {"recipe": "ppo", "parents": {"policy": before}}
    record = RunRecord("ppo", parents={"policy": entries[-1]}, ancestors=ancestors)
    record.status = "done"
    record.save(tmp_path)
    root = lineage(tmp_path)
    drawn = lines(root)
    assert len(drawn) == rounds + 2 and drawn[-1].name == "/gone/p0"
    chart = mermaid(root)
    assert chart.count("-->") == rounds + 1
    # An arrow comes after all that led to it.
    assert chart.splitlines()[-1].endswith("| n0")
    with open(os.devnull, "w") as nowhere:
        Console(file=nowhere).print(tree(root))
    assert "/gone" not in card_text(tmp_path)
    public_record(tmp_path)


def test_a_feedback_store_is_a_parent_with_its_events_and_models(tmp_path):
    store = make_feedback(tmp_path / "feedback", events=3)
    entry = feedback_entry(str(store))
    assert entry["events"] == 3 and entry["kinds"] == {"ranking": 3}
    assert entry["models"] == {"sft": "1" * 64}
    assert entry["bytes"] == (store / "events.jsonl").stat().st_size
    with open(store / "events.jsonl", "a") as file:
        file.write('{"event": "rank')  # a torn line
    add_event(Store(store))
    assert feedback_entry(str(store / "events.jsonl"))["events"] == 4


def test_other_rows_are_not_feedback(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    for name in (tmp_path, tmp_path / "rows.jsonl", "someone/rows", tmp_path / "gone.jsonl"):
        assert feedback_entry(str(name)) == {}


def test_a_hub_parent_has_its_commit_its_hash_and_its_history(stages, cached_model, tmp_path):
    folder = cached_model("user/sft", "c" * 40)
    shutil.copytree(stages.sft, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [ko, en]\n---\n# sft\n")
    entry = parent_entry("user/sft")
    assert entry["revision"] == "c" * 40 and entry["sha256"] == weights_sha256(stages.sft)
    assert (entry["recipe"], entry["license"], entry["language"]) == ("sft", "mit", ["ko", "en"])
    assert parent_entry("user/sft@" + "c" * 40) == entry
    run = make_run(tmp_path / "ppo", "ppo", parents=[("policy", "user/sft")])
    listed = [(line.stage, line.name) for line in lines(lineage(run))]
    assert ("base", str(stages.base)) in listed  # behind the Hub model
    assert base_model(run, RunRecord.load(run)) == "user/sft"
    # Gone from the cache, it is a Hub model still.
    shutil.rmtree(folder)
    assert base_model(run, RunRecord.load(run)) == "user/sft"


def test_a_folder_next_to_the_run_is_not_taken_for_a_hub_parent(cached_model, tmp_path):
    (cached_model("user/sft", "d" * 40) / "model.safetensors").write_text("of the Hub")
    run = make_run(tmp_path / "runs" / "ppo", "ppo", parents=[("policy", "user/sft")])
    make_run(tmp_path / "runs" / "sft", "sft")
    [policy] = lineage(run).parents
    assert policy.is_on_hub and policy.sha256 == digest("of the Hub")


@pytest.mark.parametrize(
    ("card", "facts"),
    [
        ("---\nlicense: apache-2.0\n---\n", {"license": "apache-2.0"}),
        ("---\nlicense: other\n---\n", {}),
        (
            "---\nlicense: other\nlicense_name: mine\n---\n",
            {"license": "other", "license_name": "mine"},
        ),
        ("# no front matter\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("---\njust a text\n---\n", {}),
    ],
)
def test_a_licence_is_copied_from_a_card_and_never_invented(tmp_path, card, facts):
    (tmp_path / "README.md").write_text(card)
    assert card_facts(tmp_path) == facts


def test_a_licence_may_be_in_the_config(tmp_path):
    (tmp_path / "config.json").write_text('{"license": "mit"}')
    assert card_facts(tmp_path) == {"license": "mit"}


def test_an_empty_folder_has_no_digests(tmp_path):
    assert model_digests(tmp_path) == {} and weights_sha256(tmp_path) == ""


def test_mermaid_draws_each_model_once_and_escapes_names(stages):
    chart = mermaid(lineage(stages.ppo), lambda name: name.rpartition("/")[2] + ' "x"')
    assert chart.startswith("flowchart LR\n")
    boxes = [line for line in chart.splitlines() if "[" in line]
    assert len([box for box in boxes if "sft #quot;x#quot;" in box]) == 1
    assert '"x"' not in chart
    arrows = [line for line in chart.splitlines() if "-->" in line]
    # text twice, sft data, prompts, feedback, tokenizer, base, policy, base of reward, reward
    assert len(arrows) == len(set(arrows)) == 10


@pytest.mark.parametrize(
    "metadata, facts",
    [
        ("license: [mit]\nlanguage: no", {"license": "mit", "language": "no"}),
        ("language: [en, no, 5]", {"language": ["en", "no"]}),
        (
            "license: [mit, apache-2.0]",
            {"license": "other", "license_name": "mit, apache-2.0"},
        ),
        ("license: 2\nlicense_name: 3\nlanguage: {a: b}", {}),
        ("license: other\nlicense_link: [x]", {}),
    ],
)
def test_licence_and_languages_of_an_unusual_card(tmp_path, metadata, facts):
    """YAML reads `no`, Norwegian, as False."""
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    assert card_facts(tmp_path) == facts
