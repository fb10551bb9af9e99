"""Rankings from the events of a feedback store, whose lines have the columns `event` and `schema`.

A ranking is one as it is. A comparison becomes a ranking: the better answer has rank 0 and the others share rank 1, and
answers that tie share rank 0. Answers that are all bad are dropped, since rank 0 means good to who learns the best answers.
A rating of one answer ranks nothing, so it is counted and dropped. Equal texts are one completion, with the best rank.

For KTO the same events are thumbs: ratings of one answer, and answers that are all bad. Rankings have no thumbs there.
"""

from rlhf.data.conversations import Dropped
from rlhf.errors import UserError

SCHEMA = 2  # of new events: it added `consent`
READABLE = (1, 2)
EVENTS = ("ranking", "comparison", "rating")
SIDES = ("left", "right")  # verdicts on two answers; on three, the index on the screen
UNDECIDED = ("tie", "both bad")
RATING = "ratings of one answer, which rank nothing"
ALL_BAD = "comparisons in which all answers are bad"
EQUAL_ANSWERS = "judgements of answers with the same text"
NO_THUMBS = "rankings and comparisons, which rate no answer by itself"
BROKEN = "lines that are not whole events"
THUMBS = {"up": True, "down": False}


def is_event(row: dict) -> bool:
    return row["event"] in EVENTS


def from_event(row: dict) -> list[dict]:
    """{event, messages, answers: [{text}], ranks, or shown and verdict} as a ranking, where it ranks answers."""
    check_schema(row["schema"])
    if row["event"] == "rating":
        return [Dropped(RATING)]
    completions = _texts_of_answers(row)
    if row["event"] == "comparison":
        ranks = comparison_ranks(row.get("verdict"), row.get("shown"), len(completions))
        if row["verdict"] == "both bad":
            return [Dropped(ALL_BAD)]
    else:
        # A ranking, since layouts are recognised by `is_event`.
        ranks = row.get("ranks")
        check_ranks(ranks, len(completions))
    completions, ranks = merged(completions, ranks)
    if len(completions) < 2:
        return [Dropped(EQUAL_ANSWERS)]
    return [_with_event(row, {"completions": completions, "ranks": ranks})]


def thumbs_of_event(row: dict) -> list[dict]:
    """{event, messages, completion, value} as an answer with a label, and answers that are all bad as bad ones."""
    check_schema(row["schema"])
    if row["event"] == "rating":
        if row.get("value") not in THUMBS:
            raise UserError(f"value: up or down is expected, {row.get('value')!r:.60} given")
        ours = {"completion": row.get("completion"), "label": THUMBS[row["value"]]}
        return [_with_event(row, ours)]
    if row["event"] != "comparison" or row.get("verdict") != "both bad":
        return [Dropped(NO_THUMBS)]
    return [
        _with_event(row, {"completion": text, "label": False}) for text in _texts_of_answers(row)
    ]


def _with_event(row: dict, ours: dict) -> dict:
    """A row of ours with its prompt, and which event it was, so that it can be traced back."""
    ours = {"prompt": row.get("messages"), **ours}
    return {**ours, "id": row.get("id"), "annotator": row.get("annotator")}


def _texts_of_answers(row: dict) -> list[str]:
    """The texts of the answers of an event. UserError for what has none."""
    for column in ("messages", "answers"):
        if not isinstance(row.get(column), list):
            raise UserError(f"{column}: a list is expected, {row.get(column)!r:.60} given")
    texts = []
    for i, answer in enumerate(row["answers"]):
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
            raise UserError(f"answers: answer {i}: an object with a text is expected")
        texts.append(answer["text"])
    return texts


def check_schema(schema) -> None:
    """UserError for an event of a version that this one does not know."""
    # True equals 1 in Python.
    if schema not in READABLE or isinstance(schema, bool):
        versions = " and ".join(map(str, READABLE))
        raise UserError(
            f"schema: {schema!r:.60} given, this version reads {versions}: use the version that wrote it"
        )


def check_ranks(ranks, count: int) -> None:
    """UserError unless there is a whole number from 0 for each of `count` answers."""
    is_list = isinstance(ranks, list) and all(type(rank) is int and rank >= 0 for rank in ranks)
    if not is_list or len(ranks) != count:
        raise UserError(
            f"ranks: {count} whole numbers from 0 (the best) are expected, {ranks!r:.60} given"
        )


def comparison_ranks(verdict, shown, count: int) -> list[int]:
    """Ranks of the answers from a verdict about their order on the screen. UserError for what is neither.

    shown: the indices of the answers, from left to right.
    """
    if not isinstance(shown, list) or sorted(shown, key=str) != list(range(count)):
        raise UserError(f"shown: an order of {count} answers is expected, {shown!r:.60} given")
    if verdict in UNDECIDED:
        return [0] * count
    position = verdict
    if count == 2 and verdict in SIDES:
        position = SIDES.index(verdict)
    elif type(verdict) is not int or count == 2 or not 0 <= verdict < count:
        sides = SIDES
        if count > 2:
            sides = tuple(range(count))
        allowed = ", ".join(repr(name) for name in (*sides, *UNDECIDED))
        raise UserError(f"verdict: one of {allowed} is expected, {verdict!r:.60} given")
    # Which of the losers is better was not asked.
    ranks = [1] * count
    ranks[shown[position]] = 0
    return ranks


def merged(completions: list[str], ranks: list[int]) -> tuple[list[str], list[int]]:
    """The different texts in their order, each with the best of its ranks."""
    best: dict[str, int] = {}
    for text, rank in zip(completions, ranks, strict=True):
        best[text] = min(rank, best.get(text, rank))
    return list(best), list(best.values())
