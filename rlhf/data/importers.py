"""Rows of other projects -> our rows. Each importer is a pure function: one foreign row in, a list of our rows out.

A layout is recognised by its columns (and, where those could mean something else, by a look at one value). Columns that
an importer does not use are kept. A row that cannot be turned raises UserError("column: reason").
What was left out and why: Alpaca's "Below is an instruction ..." wrapper (the chat template does that job), ShareGPT's
tool turns (GPT-2 class models have no tools), SQuAD's plausible answers to questions without one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from rlhf.data.words import cut_words
from rlhf.errors import UserError


def from_alpaca(row: dict) -> list[dict]:
    """{instruction, input, output}: the input follows the instruction after an empty line."""
    prompt = _instruction(row["instruction"], row.get("input"))
    return [
        {
            "prompt": prompt,
            "completion": row["output"],
            **_rest(row, "instruction", "input", "output"),
        }
    ]


def from_instances(row: dict) -> list[dict]:
    """Self-Instruct's {instruction, instances: [{input, output}, ...]}: one row for each instance."""
    instances, rest = row["instances"], _rest(row, "instruction", "instances")
    if not isinstance(instances, list) or not all(
        isinstance(i, dict) and "output" in i for i in instances
    ):
        raise UserError(
            f"instances: a list of {{input, output}} is expected, {instances!r:.60} given"
        )
    return [
        {
            "prompt": _instruction(row["instruction"], i.get("input")),
            "completion": i["output"],
            **rest,
        }
        for i in instances
    ]


def _instruction(instruction: str, given: str | None) -> str:
    return f"{instruction}\n\n{given}" if instruction and given else instruction or given


SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def from_sharegpt(row: dict) -> list[dict]:
    """{conversations: [{from, value}, ...]} with human / gpt / system."""
    messages = []
    for turn in row["conversations"]:
        role = SPEAKERS.get(str(turn["from"]))
        if role is None:
            raise UserError(
                f"conversations: unknown speaker {turn['from']!r}, allowed: {', '.join(SPEAKERS)}"
            )
        messages.append({"role": role, "content": turn.get("value")})
    return [{"messages": messages, **_rest(row, "conversations")}]


TURN = re.compile(r"\n\n(Human|Assistant):")


def from_hh(row: dict) -> list[dict]:
    """HH-RLHF's two whole dialogues: the turns they share are the prompt, the answer that differs is judged."""
    chosen, rejected = _turns(row["chosen"], "chosen"), _turns(row["rejected"], "rejected")
    shared = [
        turn
        for turn, _ in takewhile(
            lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)
        )
    ]
    answers = []
    for column, turns in (("chosen", chosen), ("rejected", rejected)):
        own = turns[len(shared) :]
        if [turn["role"] for turn in own] != ["assistant"]:
            raise UserError(
                f"{column}: one own answer after the shared turns is expected, {len(own)} turns given"
            )
        answers.append(own[0]["content"])
    return [
        {
            "prompt": shared,
            "chosen": answers[0],
            "rejected": answers[1],
            **_rest(row, "chosen", "rejected"),
        }
    ]


def _turns(dialogue: str, column: str) -> list[dict]:
    before, *parts = TURN.split(dialogue)
    if before.strip() or not parts:
        raise UserError(
            f"{column}: a dialogue that begins with '\\n\\nHuman:' is expected, {dialogue!r:.60} given"
        )
    turns: list[dict] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if (
            turns and turns[-1]["role"] == role
        ):  # the same speaker twice in a row: one turn, as chat templates want it
            turns[-1]["content"] += "\n\n" + text.strip()
        else:
            turns.append({"role": role, "content": text.strip()})
    return turns


def from_kochatgpt(row: dict) -> list[dict]:
    """{prompt, completion_0 .. completion_K-1, ranking}: ranking[i] is the rank of completion_i, 0 = best.

    That reading is the one of the project's own training code, which takes completion_i over completion_j as chosen
    where ranking[i] < ranking[j]; `ranking` is not a list of answers in order of merit.
    """
    columns = sorted(
        (c for c in row if re.fullmatch(r"completion_\d+", c)), key=lambda c: int(c.split("_")[1])
    )
    completions = [row[column] for column in columns]
    rest = _rest(row, "prompt", "ranking", *columns)
    return [{"prompt": row["prompt"], "completions": completions, "ranks": row["ranking"], **rest}]


def from_question_answer(row: dict) -> list[dict]:
    """ChatbotData.csv's {Q, A, label}: the label (its topic) is kept as an extra column."""
    return [{"prompt": row["Q"], "completion": row["A"], **_rest(row, "Q", "A")}]


def from_ner_tags(row: dict) -> list[dict]:
    """{tokens, ner_tags}, as data sets of the Hub have it: its tags by their usual name."""
    return [{"tokens": row["tokens"], "tags": row["ner_tags"], **_rest(row, "tokens", "ner_tags")}]


def from_entities(row: dict) -> list[dict]:
    """{text, entities: [{start, end, label}]} (or triples, Doccano's start_offset or its `label`, Prodigy's `spans`).

    Words with tags come of it. A border of an entity parts words; a text of a script that does not part its words by
    spaces, and Korean, whose words hold their particles, becomes characters.
    """
    column = _marks(row)
    text, marked = row["text"], sorted(_entity(entity, column) for entity in row[column])
    borders = {place for start, end, _ in marked for place in (start, end)}
    for (start, end, _), (later, *_) in zip(marked, [*marked[1:], (len(text),)]):
        if not 0 <= start < end <= len(text):
            raise UserError(
                f"{column}: {start} to {end} is no part of a text of {len(text)} characters"
            )
        if later < end:
            raise UserError(
                f"{column}: two entities overlap at character {later}: keep one of them"
            )
    if NO_SPACES.search(text):
        units = [(place, place + 1) for place in range(len(text))]
    else:
        units = []
        for start, end in cut_words(text):
            cuts = [start, *sorted(place for place in borders if start < place < end), end]
            units += zip(cuts, cuts[1:])
    tags = ["O"] * len(units)
    for start, end, label in marked:
        inside = [place for place, (a, b) in enumerate(units) if start <= a and b <= end]
        if not inside:
            raise UserError(f"{column}: {text[start:end]!r} at character {start} holds no word")
        for place in inside:
            tags[place] = f"{'B' if place == inside[0] else 'I'}-{label}"
    tokens = [text[start:end] for start, end in units]
    return [
        {**_rest(row, "text", column), "tokens": tokens, "tags": tags}
    ]  # Prodigy's own tokens are another cut


NO_SPACES = re.compile("[\u0e00-\u0eff\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")


def _entity(entity, column: str) -> tuple[int, int, str]:
    names = (("start", "start_offset"), ("end", "end_offset"), ("label", "type"))
    if isinstance(entity, dict):
        entity = [next((entity[name] for name in pair if name in entity), None) for pair in names]
    if not isinstance(entity, list) or [type(part) for part in entity] != [int, int, str]:
        raise UserError(f"{column}: items {{start, end, label}} are expected, {entity!r:.60} given")
    return tuple(entity)


def _marks(row: dict) -> str | None:
    """The column that holds the entities of a text."""
    return next(
        (name for name in ("entities", "spans", "label") if isinstance(row.get(name), list)), None
    )


def _has_spans(row: dict) -> bool:
    """A list of `label` may be of names, of a text with several labels."""
    column = isinstance(row["text"], str) and _marks(row)
    return bool(column) and (
        column != "label" or any(isinstance(mark, list | dict) for mark in row[column])
    )


def from_squad(row: dict) -> list[dict]:
    """SQuAD's article {title, paragraphs: [{context, qas: [{id, question, answers, is_impossible}]}]}: a row a question."""
    rows = []
    for place, paragraph in enumerate(_objects(row["paragraphs"], "paragraphs")):
        for question in _objects(paragraph.get("qas"), f"paragraphs: paragraph {place}: qas"):
            given = {name: question.get(name) for name in ("id", "question", "answers")}
            impossible = {"is_impossible": True} if question.get("is_impossible") is True else {}
            rows.append(
                {
                    **given,
                    **impossible,
                    "context": paragraph.get("context"),
                    **_rest(row, "paragraphs"),
                }
            )
    return rows


def _objects(value, place: str) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{place}: a list of objects is expected, {value!r:.60} given")
    return value


def _rest(row: dict, *used: str) -> dict:
    return {key: value for key, value in row.items() if key not in used}


def _has_dialogues(row: dict) -> bool:
    return "prompt" not in row and all(
        isinstance(row[c], str) and TURN.search(row[c]) for c in ("chosen", "rejected")
    )


def _has_speakers(row: dict) -> bool:
    turns = row["conversations"]
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(isinstance(turn, dict) and "from" in turn for turn in turns)
    )


@dataclass(frozen=True)
class Layout:
    """name; columns: what a foreign row must have; kind: of our rows; fits: a look at the values, where needed."""

    name: str
    columns: tuple[str, ...]
    kind: str
    convert: Callable[[dict], list[dict]]
    fits: Callable[[dict], bool] = lambda row: True

    def matches(self, row: dict) -> bool:
        return row.keys() >= set(self.columns) and self.fits(row)

    def read(self, row: dict) -> list[dict]:
        if not self.matches(row):
            raise UserError(
                f"{', '.join(self.columns)}: not a {self.name} row; its columns are {', '.join(row)}"
            )
        return self.convert(row)


def from_swag(row: dict) -> list[dict]:
    """SWAG (arXiv 1808.05326): each ending completes the beginning of a second sentence."""
    choices = [f"{row['sent2']} {row[f'ending{k}']}" for k in range(4)]
    return [{"text": row["sent1"], "choices": choices, "label": row.get("label")}]


LAYOUTS = (
    Layout("Alpaca", ("instruction", "output"), "prompt_completion", from_alpaca),
    Layout("Self-Instruct", ("instruction", "instances"), "prompt_completion", from_instances),
    Layout("ShareGPT", ("conversations",), "messages", from_sharegpt, _has_speakers),
    Layout("HH-RLHF", ("chosen", "rejected"), "preference", from_hh, _has_dialogues),
    Layout(
        "KoChatGPT",
        ("prompt", "completion_0", "completion_1", "ranking"),
        "ranking",
        from_kochatgpt,
    ),
    Layout("SQuAD", ("paragraphs",), "question_answering", from_squad),
    Layout(
        "SWAG",
        ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3"),
        "multiple_choice",
        from_swag,
    ),
    Layout("ChatbotData", ("Q", "A"), "prompt_completion", from_question_answer),
    Layout("ner_tags", ("tokens", "ner_tags"), "ner", from_ner_tags),
    Layout("entities", ("text", "entities"), "ner", from_entities, _has_spans),
    Layout("spans", ("text", "spans"), "ner", from_entities, _has_spans),
    Layout("entities as label", ("text", "label"), "ner", from_entities, _has_spans),
)


def recognise_layout(row: dict) -> Layout | None:
    """The foreign layout of a row, None where it is none of these."""
    return next((layout for layout in LAYOUTS if layout.matches(row)), None)
