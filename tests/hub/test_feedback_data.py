"""A feedback store as a data set: only what was agreed to, nobody who can be linked, and rows that load and train."""

import json
import tracemalloc
from dataclasses import replace

import pytest

from rlhf.data.load import load_rows
from rlhf.errors import UserError
from rlhf.feedback import store as stores
from rlhf.feedback.events import Answer, Comparison, ModelUsed, Ranking, Rating, to_row
from rlhf.feedback.store import Store
from rlhf.hub.feedback_data import feedback_folder

MODEL = ModelUsed("ppo · demo", "/home/ann/secret-project/runs/ppo", "1" * 64)
HUB = ModelUsed("user/model", "user/model", "2" * 40)
OTHER_SECRETS = (
    "Authorization: Bearer abcdef123456",
    "https://ann:hunter2@example.org/data",
    "AKIA" + "D" * 16,
)


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def ranking(text: str, ranks=(0, 1, 1), **more) -> Ranking:
    answers = [Answer(f"answer {i} to {text}", MODEL, 2**63 + i) for i in range(len(ranks))]
    more = {"consent": True} | more
    return Ranking(asked(text), answers, list(range(len(ranks))), {}, list(ranks), **more)


def comparison(text: str, verdict, **more) -> Comparison:
    answers = [Answer(f"A to {text}", MODEL, 1), Answer(f"B to {text}", HUB, 2)]
    return Comparison(asked(text), answers, [1, 0], {}, verdict, **({"consent": True} | more))


def thumb(text: str, value: str = "up", **more) -> Rating:
    more = {"consent": True} | more
    return Rating(asked(text), f"yes, {text}", MODEL, {"temperature": 0.7}, 3, value, **more)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "feedback")


@pytest.fixture
def filled(store):
    """Two people, one of whom agreed to publish some of their feedback only."""
    ann, bob = store.annotator("Ann"), store.annotator("Bob")
    for i in range(6):
        store.append(ranking(f"question {i}", annotator=ann))
    store.append(comparison("which", "left", annotator=bob))
    store.append(comparison("neither", "both bad", annotator=bob, source="api"))
    store.append(thumb("fine", annotator=bob))
    store.append(ranking("my private worry", annotator=bob, consent=False))
    store.append(thumb("not this", annotator=bob, consent=False))
    return store


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def all_text(folder) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.iterdir()))


def test_only_what_was_agreed_to_is_published_and_the_rest_is_counted(filled, tmp_path):
    shared = feedback_folder(filled.folder, tmp_path / "out")
    assert (shared.rankings, shared.ratings, shared.without_consent) == (7, 3, 2)
    text = all_text(tmp_path / "out")
    assert "private worry" not in text and "not this" not in text
    assert "2 events without consent were left behind" in shared.notes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "ratings.jsonl",
        "train.jsonl",
    ]


def test_nobody_can_be_linked_to_the_names_of_the_store(filled, tmp_path):
    out = tmp_path / "out"
    feedback_folder(filled.folder, out, repo="user/feedback")
    text = all_text(out)
    for event in filled.events():
        assert event.annotator not in text and event.id not in text and event.time not in text
    salts = [path.read_text().strip() for path in filled.folder.glob(".salt*")]
    assert len(salts) == 2 and not any(salt in text for salt in salts)
    assert "/home/ann" not in text and "secret-project" not in text
    # Two people are still two people, and the same in both files.
    rankings, ratings = rows_of(out / "train.jsonl"), rows_of(out / "ratings.jsonl")
    assert len({row["annotator"] for row in rankings}) == 2
    assert {row["annotator"] for row in ratings} == {rankings[6]["annotator"]}
    # In another repository they are others.
    feedback_folder(filled.folder, tmp_path / "other", repo="user/other")
    others = {row["annotator"] for row in rows_of(tmp_path / "other" / "train.jsonl")}
    assert not others & {row["annotator"] for row in rankings}


def test_the_same_events_give_the_same_bytes(filled, tmp_path):
    for name in ("one", "two"):
        feedback_folder(filled.folder, tmp_path / name, repo="user/feedback")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_rows_keep_ranks_models_and_verdicts(filled, tmp_path):
    feedback_folder(filled.folder, tmp_path / "out")
    rankings = rows_of(tmp_path / "out" / "train.jsonl")
    assert rankings[0]["ranks"] == [0, 1, 1] and rankings[0]["models"] == ["ppo · demo"] * 3
    # The left answer on the screen was the second one.
    assert rankings[6]["completions"] == ["A to which", "B to which"]
    assert rankings[6]["ranks"] == [1, 0] and rankings[6]["models"] == ["ppo · demo", "user/model"]
    assert rankings[6]["revisions"] == ["1" * 64, "2" * 40]
    ratings = rows_of(tmp_path / "out" / "ratings.jsonl")
    assert [row["label"] for row in ratings] == [False, False, True]


def test_the_folder_is_read_by_the_reward_recipe_as_it_is(filled, tmp_path):
    feedback_folder(filled.folder, tmp_path / "out")
    rows = load_rows(str(tmp_path / "out"), kinds=("ranking",)).rows
    assert len(rows) == 7 and rows[0]["ranks"] == [0, 1, 1]


def test_load_dataset_reads_both_parts(filled, tmp_path, monkeypatch):
    from datasets import load_dataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    feedback_folder(filled.folder, tmp_path / "out")
    cache = str(tmp_path / "cache")
    rankings = load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache)
    ratings = load_dataset(str(tmp_path / "out"), "ratings", split="train", cache_dir=cache)
    assert len(rankings) == 7 and rankings[0]["ranks"] == [0, 1, 1]
    assert ratings["label"] == [False, False, True]


def test_a_store_with_thumbs_alone_has_one_part(store, tmp_path):
    store.append(thumb("fine"))
    shared = feedback_folder(store.folder, tmp_path / "out")
    assert (shared.rankings, shared.ratings) == (0, 1)
    assert not (tmp_path / "out" / "train.jsonl").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "default: true" in card and "rlhf reward" not in card


def test_an_event_with_a_token_is_left_behind_and_an_address_is_told(store, tmp_path):
    store.append(thumb("my token is hf_" + "a" * 34))
    store.append(ranking("write to ann@example.org"))
    shared = feedback_folder(store.folder, tmp_path / "out")
    assert (shared.with_keys, shared.with_email, shared.ratings) == (1, 1, 0)
    assert "hf_aaaa" not in all_text(tmp_path / "out")
    assert len(shared.notes()) == 2


def test_what_cannot_be_shared_is_refused_with_the_remedy(store, tmp_path):
    with pytest.raises(UserError, match="no events.jsonl in it: give the folder of a feedback"):
        feedback_folder(store.folder, tmp_path / "out")
    store.append(thumb("no", consent=False))
    with pytest.raises(UserError, match='none of its 1 events may be published. .* "My feedback'):
        feedback_folder(store.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    store.append(ranking("equal", ranks=(0, 1)))
    event = list(store.events())[-1]
    same = [replace(answer, text="same") for answer in event.answers]
    store.path.unlink()
    Store(store.folder).append(replace(event, answers=same))
    with pytest.raises(UserError, match="rank nothing"):
        feedback_folder(store.folder, tmp_path / "out")


def test_a_torn_line_is_counted(filled, tmp_path):
    with open(filled.path, "a") as file:
        file.write('{"event": "rating", "sch')
    assert feedback_folder(filled.folder, tmp_path / "out").unreadable == 1


def test_the_card_says_numbers_models_and_where_scripts_took_part(filled, tmp_path):
    feedback_folder(filled.folder, tmp_path / "out", repo="user/feedback")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: other\n")
    assert "# feedback" in card and 'load_dataset("user/feedback", "rankings"' in card
    assert "| people with a name | 2 |" in card and "| different prompts | 9 |" in card
    assert (
        "1 came from clients of the API" in card and "| user/model | 2222222222222222 | 2 |" in card
    )


@pytest.mark.slow
def test_a_reward_model_is_trained_on_the_folder(store, tmp_path, recipe_module, tokenizer):
    from rlhf.models.load import save
    from rlhf.models.scratch import new_policy
    from rlhf.runs.record import RunRecord
    from rlhf.runs.run import start

    for i in range(12):
        store.append(ranking(f"question {i}"))
    feedback_folder(store.folder, tmp_path / "out")
    sizes = dict(hidden_size=16, layers=1, heads=2, context=24, dropout=0.0)
    save(new_policy(tokenizer, model_type="gpt2", **sizes), tokenizer, tmp_path / "policy")
    reward = recipe_module("reward")
    files = f"--dataset_name {tmp_path}/out --model_name_or_path {tmp_path}/policy"
    flags = (
        f"--output_dir {tmp_path}/run --use_cpu --report_to none --max_steps 2 --eval_fraction 0.25"
    )
    start(reward.main, reward.__doc__, f"{files} {flags}".split())
    record = RunRecord.load(tmp_path / "run")
    assert record.status == "done" and record.metrics["train_rankings"] == 9


def test_a_large_store_is_read_a_block_at_a_time(store, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK", 50_000)
    store.append(ranking("first"))
    feedback_folder(store.folder, tmp_path / "warm")  # imports and caches
    rows = [to_row(ranking(f"question {i} " + "word " * 300)) for i in range(400)]
    stores.append_lines(store.path, rows)
    size = store.path.stat().st_size
    del rows
    tracemalloc.start()
    try:
        shared = feedback_folder(store.folder, tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A few blocks as text, JSON and events. All events at once took more than twice the file.
    assert shared.rankings == 401 and size > 2_000_000 and peak < size / 2


@pytest.mark.parametrize("before", ["\n", "\t", "내 토큰은", "my_", "=", '"'])
@pytest.mark.parametrize(
    "key", ["hf_" + "a" * 34, "sk-proj-" + "b" * 30, "ghp_" + "c" * 36, *OTHER_SECRETS]
)
def test_a_key_is_seen_whatever_is_before_it(store, tmp_path, before, key):
    store.append(ranking(f"my key:{before}{key}"))
    store.append(ranking("how does a task-oriented-dialogue-system work?"))
    shared = feedback_folder(store.folder, tmp_path / "out")
    assert (shared.rankings, shared.with_keys) == (1, 1)
