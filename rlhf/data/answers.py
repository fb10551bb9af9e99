"""Checks, before the first step, that a chat template accepts the rows and that what is learned is what they say."""

from collections.abc import Callable, Sequence

from rlhf.data.chat import (
    CHAT_TEMPLATE,
    answer_form,
    as_messages,
    decode_text,
    encode_completion,
    encode_examples,
    end_of_turn_id,
    learned_column,
)
from rlhf.data.fingerprints import template_fingerprint
from rlhf.data.templates import FILE, check_text_template, refusal_of, template_of
from rlhf.errors import UserError

CHECKED_ROWS = 8
SHOWN = 60  # characters of an answer in a message
PROBE = "probe0"
THOUGHT = "</think>"


def template_checks(tokenizer) -> dict[str, Callable]:
    """Checks of prompts and messages for `data.splits.load_splits`: does the chat template accept their roles?

    A row that it refuses is bad: it stops the run with its line, or is dropped and counted (skip_bad).
    """
    writes_all = tokenizer.chat_template is None or template_of(tokenizer).endswith(CHAT_TEMPLATE)
    if not writes_all:
        check_text_template(tokenizer)

    def of_prompt(prompt) -> str | None:
        roles, reason = _roles(prompt)
        if reason or writes_all:
            return reason
        return refusal_of(tokenizer, roles, generation_prompt=True)

    def of_messages(messages) -> str | None:
        roles, reason = _roles(messages)
        if reason or writes_all:
            return reason
        # Each answer is learned behind its own history.
        for i, role in enumerate(roles):
            if role == "assistant" and i > 0:
                reason = refusal_of(tokenizer, roles[:i], generation_prompt=True)
                if reason:
                    return reason
        return refusal_of(tokenizer, roles, generation_prompt=False)

    # What the checks say may be cached with the rows.
    of_prompt.fingerprint = of_messages.fingerprint = template_fingerprint(tokenizer)
    return {"prompt": of_prompt, "messages": of_messages}


def _roles(prompt) -> tuple[tuple[str, ...], str | None]:
    """The roles of a prompt, and why its messages cannot be read, or None."""
    try:
        messages = as_messages(prompt)
    except UserError as error:
        return (), str(error)
    return tuple(message["role"] for message in messages), None


def check_answers(tokenizer, rows: Sequence[dict]) -> None:
    """UserError where the ids that a row teaches are not the words of its answers, shown by a few of the rows.

    rows: with messages, completion or completions; others have no answer to check.
    """
    if tokenizer.chat_template is None:
        return
    # Spread over the rows, because files are often sorted by their source.
    step = max(1, len(rows) // CHECKED_ROWS)
    for row in rows[::step][:CHECKED_ROWS]:
        for words, ids in _answers(tokenizer, row):
            _check_answer(tokenizer, words, ids)


def _answers(tokenizer, row: dict) -> list[tuple[str, list[int]]]:
    """The words of each answer of a row, and the ids that are learned for them."""
    part = learned_column(row)
    answers = row.get("completions") or []
    if part == "completion" and not {"completions", "ranks"} <= row.keys():
        answers = [row["completion"]]
    if answers or part != "messages":
        return [(words, encode_completion(tokenizer, words)) for words in answers]
    messages = as_messages(row["messages"])
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    learned = []
    for ids, mask in encode_examples(tokenizer, row):
        learned += learned_spans(ids, mask)
    if len(learned) != len(answers):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} gives {len(learned)} answers to learn, but the conversation "
            f"has {len(answers)}: give its answers one by one, as prompt and completion"
        )
    return list(zip(answers, learned, strict=True))


def learned_spans(ids: Sequence[int], mask: Sequence[bool]) -> list[list[int]]:
    """The runs of ids that an example teaches (mask: True where it does)."""
    spans: list[list[int]] = []
    before = False
    for token, counts in zip(ids, mask, strict=True):
        if counts and not before:
            spans.append([])
        if counts:
            spans[-1].append(token)
        before = counts
    return spans


def _check_answer(tokenizer, words: str, ids: list[int]) -> None:
    """UserError unless `ids` are `words`, what the template writes around any answer, and its end-of-turn token."""
    # As the tokenizer itself gives words back: it may lower them, or not know some.
    plain = tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    wanted = _squeezed(tokenizer, plain)
    learned = _squeezed(tokenizer, ids[:-1])
    # The generation prompt may already hold the beginning of an answer, as <think>.
    opening = _squeezed(tokenizer, answer_form(tokenizer).opening)
    is_whole = wanted in opening + learned and len(learned) <= len(wanted) + _frame(tokenizer)
    # Qwen 3.8 writes an empty <think></think> in front of reasoning that is in the words.
    if THOUGHT in wanted:
        is_whole = is_whole and (opening + learned).count(THOUGHT) == wanted.count(THOUGHT)
    if is_whole and ids[-1] == end_of_turn_id(tokenizer):
        return
    raise UserError(
        f"the chat template of {tokenizer.name_or_path!r} writes the answer {words[:SHOWN]!r} so that "
        f"{tokenizer.decode(ids)[:SHOWN]!r} would be learned: take out of the answers what the template does not keep (as "
        f"reasoning in <think>), or use a template that keeps it ({FILE}; trl has training templates: "
        "trl.chat_template_utils.get_training_chat_template)"
    )


def _frame(tokenizer) -> int:
    """Characters that the template adds to the words of an answer, as an empty <think></think>."""
    try:
        written = encode_completion(tokenizer, PROBE)
    except UserError:  # a template that wants reasoning in every answer
        return 0
    return max(0, len(_squeezed(tokenizer, written[:-1])) - len(PROBE))


def _squeezed(tokenizer, ids: Sequence[int]) -> str:
    """The text of ids without special tokens and white space, which templates trim."""
    return "".join(decode_text(tokenizer, ids).split())
