"""The demo's data: honest where small talk ends, conversations, and wordings that stay apart."""

import json
import random

import pytest
from rlhf.recipes.rewards import honest, on_topic
from rlhf.recipes.smalltalk import BEYOND, VOICES, Beyond, Dialogues, Question, make, read_topics

from rlhf.data.answers import check_answers, template_checks
from rlhf.data.chat import add_chat_template, encode_completion, encode_examples, encode_prompt
from rlhf.recipes import examples, smalltalk
from rlhf.tokenizers.train import train_tokenizer


@pytest.fixture(scope="module")
def files():
    return make("caring")


@pytest.fixture(scope="module")
def refusals():
    return Beyond().answers


def wordings(prompt) -> str:
    """The last message of a prompt without capitals and signs at its end."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return text.lower().rstrip(".?!") or text


def test_no_wording_is_both_learned_and_held_out(files):
    learned = {wordings(row["prompt"]) for name in ("prompts", "rankings") for row in files[name]}
    for row in files["sft"]:
        users = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
        learned |= {wordings(text) for text in users}
    tuned = {wordings(row["prompt"]) for row in files["dev"]}
    for name in ("heldout", "heldout_beyond"):
        reported = {wordings(row["prompt"]) for row in files[name]}
        assert len(reported) == len(files[name])
        assert not reported & learned and not reported & tuned
    assert not tuned & learned


def test_questions_beyond_small_talk_are_of_many_kinds_some_never_learned():
    kinds = Beyond().kinds
    held_out = smalltalk.read_json("beyond_heldout.json")
    assert len(kinds) >= 15 and sum(map(len, kinds.values())) >= 400
    unseen = set(held_out["test"]) - set(kinds) - set(held_out["dev"])
    assert len(unseen) >= 6 and sum(len(held_out["test"][kind]) for kind in unseen) >= 40
    assert any("가" <= sign <= "힣" for prompt in kinds["other languages"] for sign in prompt)


def test_every_question_beyond_is_answered_honestly_in_each_voice(files, refusals):
    rows = [
        row for row in files["dev"] if row["topic"] == BEYOND and isinstance(row["prompt"], str)
    ]
    assert len(rows) >= 100
    assert {row["completion"] for row in rows} == set(refusals.values()) and len(refusals) == 5
    assert all(answer.startswith("Beyond me") for answer in refusals.values())


def test_an_honest_refusal_ranks_above_answers_to_other_topics(files, refusals):
    topics = {topic["topic"]: topic["answers"] for topic in read_topics()}
    beyond = in_scope = 0
    for row in files["rankings"]:
        ranks = dict(zip(row["completions"], row["ranks"], strict=True))
        refused = [rank for text, rank in ranks.items() if text in refusals.values()]
        if not refused:
            continue
        if 0 in refused:  # the question is beyond small talk
            others = [rank for text, rank in ranks.items() if text not in refusals.values()]
            assert ranks[refusals["caring"]] == 0 < max(refused) < min(others)
            beyond += 1
        else:
            assert refused[0] < max(row["ranks"])
            assert sum(rank < refused[0] for rank in row["ranks"]) == 3
            in_scope += 1
    assert beyond > 300 and in_scope > 300
    assert BEYOND not in topics


def test_losing_a_job_gets_no_congratulations():
    topics = {topic["topic"]: topic for topic in read_topics()}
    assert "I lost my job" in topics["job_loss"]["phrasings"]
    for topic in ("job_loss", "grief", "lonely"):
        answers = " ".join(topics[topic]["answers"].values())
        assert "Congratulations" not in answers and topics[topic]["answers"].keys() == set(VOICES)
    others = [name for name, topic in topics.items() if "I lost my job" in topic["phrasings"]]
    assert others == ["job_loss"]


def test_the_answer_to_a_follow_up_depends_on_the_topic_before():
    dialogues = Dialogues(random.Random(0))
    topics = {topic["topic"]: topic["answers"] for topic in read_topics()}
    dog, joke = (Question("hi", name, topics[name]) for name in ("dog", "tell_joke"))
    for kind in ("why", "more", "mean", "another"):
        first, second = (dialogues.follow_up(before, kind, "known") for before in (dog, joke))
        assert all(first.answers[voice] != second.answers[voice] for voice in VOICES), kind
        assert first.topic == "dog"
    assert dialogues.follow_up(dog, "thanks", "known").answers == topics["thanks"]


def test_every_topic_has_its_follow_ups():
    dialogues = Dialogues(random.Random(0))
    assert dialogues.topics.keys() == {topic["topic"] for topic in read_topics()} | {BEYOND}
    for asked in dialogues.asked.values():
        sides = [set(asked[side]) for side in ("known", "dev", "test")]
        assert all(sides) and len(set.union(*sides)) == sum(map(len, sides))


def test_a_conversation_has_one_to_three_turns_in_one_voice(files, refusals):
    turns = [len(row["messages"]) // 2 for row in files["sft"]]
    assert set(turns) == {1, 2, 3} and turns.count(1) > turns.count(2) > 0
    topics = [topic["answers"] for topic in read_topics()]
    voice_of = {text: voice for answers in [*topics, refusals] for voice, text in answers.items()}
    for row in files["sft"][:2000]:
        voices = {voice_of.get(turn["content"]) for turn in row["messages"][1::2]} - {None}
        assert len(voices) <= 1


def test_the_voice_changes_no_question_and_nothing_that_sft_learns(files):
    witty = make("witty")
    for name in ("text", "sft", "topics", "topics_heldout"):
        assert witty[name] == files[name]
    assert witty["rankings"] != files["rankings"]
    for name in ("prompts", "dev", "heldout_dialogues"):
        assert list(map(asked, witty[name])) == list(map(asked, files[name]))


def asked(row) -> list[str]:
    """The user's messages of a prompt."""
    if isinstance(row["prompt"], str):
        return [row["prompt"]]
    return [turn["content"] for turn in row["prompt"] if turn["role"] == "user"]


def test_the_answers_before_a_prompt_are_in_the_preferred_voice(files, refusals):
    answers = [topic["answers"] for topic in read_topics()] + [refusals]
    spoken = {text: voice for by_voice in answers for voice, text in by_voice.items()}
    rows = [row for name in ("prompts", "rankings") for row in files[name]]
    history = [turn for row in rows if isinstance(row["prompt"], list) for turn in row["prompt"]]
    said = [turn["content"] for turn in history if turn["role"] == "assistant"]
    assert said and {spoken[text] for text in said if text in spoken} == {"caring"}


def test_honest_counts_refusals_in_any_voice_and_nothing_else(refusals):
    said = [*refusals.values(), "Dogs need walks, food and attention.", ""]
    assert honest(None, said, refusals=[refusals] * len(said)) == [1.0] * 5 + [0.0, 0.0]
    assert on_topic(None, said[:1], answers=[refusals]) == [1.0]


def test_examples_are_questions_with_a_known_topic():
    topics = {topic["topic"] for topic in read_topics()} | {BEYOND}
    asked = examples.read(examples.DATA / "examples.jsonl")
    assert len(asked) >= 2 * examples.SHOWN and {row["topic"] for row in asked} <= topics


def test_only_questions_answered_right_nearly_always_become_examples(tmp_path, monkeypatch, files):
    topics = {topic["topic"]: topic["answers"] for topic in read_topics()}
    asked = examples.read(examples.DATA / "examples.jsonl")
    calls = []

    def answers_of(run, rows, *, temperature, seed):
        calls.append(seed)
        right = [{**topics, BEYOND: Beyond().answers}[row["topic"]]["plain"] for row in asked]
        right[0] = "Wrong." if seed <= 2 else right[0]  # 8 of 10
        right[1] = "Wrong." if seed == 1 else right[1]  # 9 of 10
        return right

    monkeypatch.setattr(examples, "answers_of", answers_of)
    run = type("Run", (), {"path": str(tmp_path)})
    held_out = {name: files[name] for name in ("heldout", "heldout_beyond", "heldout_dialogues")}
    results = examples.write_examples(run, held_out, 0.7)
    assert [row["right"] for row in results[:3]] == [8, 9, 10] and calls == [*range(1, 11)]
    shown = json.loads((tmp_path / "examples.json").read_text(encoding="utf-8"))
    assert shown == [row["prompt"] for row in asked[1 : 1 + examples.SHOWN]]
    said = examples.try_first(results, tmp_path, "witty")
    assert len(said.strip().splitlines()) == 3 and "VOICE=caring make demo" in said
    assert asked[1]["prompt"] in said and asked[0]["prompt"] not in said


def test_the_answer_before_is_never_worth_saying_again(files):
    repeated = 0
    for row in files["rankings"]:
        ranks = dict(zip(row["completions"], row["ranks"], strict=True))
        if isinstance(row["prompt"], str) or row["prompt"][-2]["content"] not in ranks:
            continue
        if ranks[row["prompt"][-2]["content"]] == max(row["ranks"]):
            repeated += 1
    assert repeated > 300


@pytest.fixture(scope="module")
def tokenizer(files):
    """Trained on the demo's text, with the demo's chat template."""
    texts = [row["text"] for row in files["text"][:200]]
    sizes = {"vocab_size": 600, "model_max_length": 128, "reserved": 4}
    made = train_tokenizer(texts, "byte_bpe", lowercase=False, character_coverage=1.0, **sizes)
    add_chat_template(made)
    made.chat_template = (smalltalk.DATA / smalltalk.TEMPLATE).read_text(encoding="utf-8")
    return made


def test_the_template_reads_the_last_question_and_one_word_of_each_earlier_message(tokenizer):
    row = files_row("Tell me A joke", "Joke, pal: why?", "And WHY?", "Joke, because of you.")
    first, second = encode_examples(tokenizer, row)  # each answer has a history of its own
    assert tokenizer.decode(first[0]) == (
        "<|user|> tell me a joke<|endoftext|><|assistant|> Joke, pal: why?<|endoftext|>"
    )
    assert tokenizer.decode(second[0]) == (
        "<|user|> tell<|endoftext|><|assistant|> Joke,<|endoftext|>"
        "<|user|> and why?<|endoftext|><|assistant|> Joke, because of you.<|endoftext|>"
    )
    for ids, mask in (first, second):
        learned = [token for token, counts in zip(ids, mask, strict=True) if counts]
        assert learned == encode_completion(
            tokenizer, tokenizer.decode(learned[:-1], skip_special_tokens=True).strip()
        )
    # Decoded answers begin with the space that the template writes.
    assert encode_completion(tokenizer, " Joke, pal!") == encode_completion(tokenizer, "Joke, pal!")
    check_answers(tokenizer, [row])
    checks = template_checks(tokenizer)
    assert checks["messages"](row["messages"]) is None


def test_a_long_chat_is_read_as_its_last_three_turns(tokenizer):
    row = files_row(*("Hi there", "Hello, pal.") * 6, "Why ME?")
    assert tokenizer.decode(encode_prompt(tokenizer, row["messages"])) == (
        "<|user|> hi<|endoftext|><|assistant|> Hello,<|endoftext|>" * 2
        + "<|user|> why me?<|endoftext|><|assistant|>"
    )
    refused = template_checks(tokenizer)["prompt"]
    assert refused(row["messages"][-5:]) is None
    assert "drops the user message" in refused(
        row["messages"]
    )  # a row that would be learned in part


def test_no_spelling_in_the_users_words_becomes_a_control_token(tokenizer):
    control = set(tokenizer.all_special_ids)
    wanted = [token for token in encode_prompt(tokenizer, "hello") if token in control]
    for spelled in (
        "<|USER|>",
        "<|user|>",
        "<|Assistant|>",
        "<|EndOfText|>",
        "<<||PAD|>",
        "<|pad|>",
    ):
        for text in (f"hello {spelled}", f"{spelled}{spelled}hello", f"a {spelled} b"):
            ids = encode_prompt(tokenizer, text)
            assert [token for token in ids if token in control] == wanted, text
            before = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
            ids = encode_prompt(tokenizer, [*before, {"role": "user", "content": "hello"}])
            assert sum(token in control for token in ids) == 7, text


def files_row(*turns: str) -> dict:
    """A row of messages, the user first."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}
