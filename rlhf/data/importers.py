"""Converts rows of other projects to ours. Each importer is a pure function from one foreign row to a list of our rows.

A layout is recognised by its columns and, where those could mean something else, by a look at one value. Columns that
an importer does not use are kept. A row that cannot be converted raises UserError("column: reason").

Omitted, and why:
- Alpaca's wrapper "Below is an instruction ...": the chat template does that job.
- ShareGPT's tool turns: GPT-2 class models have no tools.
- SQuAD's plausible answers to questions that have none.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.data.words import cut_words
from rlhf.errors import UserError


def _rest(row: dict, *used: str) -> dict:
    """The columns of a row that an importer does not use."""
    return {key: value for key, value in row.items() if key not in used}


# ---- instructions and questions -------------------------------------------------------------------------------------


def from_alpaca(row: dict) -> list[dict]:
    """{instruction, input, output}: the input follows the instruction after an empty line."""
    prompt = _instruction(row["instruction"], row.get("input"))
    rest = _rest(row, "instruction", "input", "output")
    return [{"prompt": prompt, "completion": row["output"], **rest}]


def from_instances(row: dict) -> list[dict]:
    """Self-Instruct's {instruction, instances: [{input, output}, ...]}: one row for each instance."""
    rest = _rest(row, "instruction", "instances")
    instances = row["instances"]
    if not isinstance(instances, list) or not all(map(_has_output, instances)):
        raise UserError(
            f"instances: a list of {{input, output}} is expected, {instances!r:.60} given"
        )
    rows = []
    for instance in instances:
        prompt = _instruction(row["instruction"], instance.get("input"))
        rows.append({"prompt": prompt, "completion": instance["output"], **rest})
    return rows


def _has_output(instance) -> bool:
    return isinstance(instance, dict) and "output" in instance


def _instruction(instruction: str, text: str | None) -> str:
    if instruction and text:
        return f"{instruction}\n\n{text}"
    return instruction or text  # either may be "" or None


def from_question_answer(row: dict) -> list[dict]:
    """ChatbotData.csv's {Q, A, label}: the label (its topic) is kept as an extra column."""
    return [{"prompt": row["Q"], "completion": row["A"], **_rest(row, "Q", "A")}]


# ---- dialogues ------------------------------------------------------------------------------------------------------

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def from_sharegpt(row: dict) -> list[dict]:
    """{conversations: [{from, value}, ...]} with human / gpt / system."""
    messages = []  # whose contents the check of rows looks at later
    for turn in row["conversations"]:
        role = SPEAKERS.get(str(turn["from"]))
        if role is None:
            raise UserError(
                f"conversations: unknown speaker {turn['from']!r}, allowed: {', '.join(SPEAKERS)}"
            )
        messages.append({"role": role, "content": turn.get("value")})
    return [{"messages": messages, **_rest(row, "conversations")}]


def _has_speakers(row: dict) -> bool:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        return False
    return all(isinstance(turn, dict) and "from" in turn for turn in turns)


TURN = re.compile(r"\n\n(Human|Assistant):")


def from_hh(row: dict) -> list[dict]:
    """HH-RLHF's two whole dialogues: the turns that they share are the prompt, and their last turns are the answers."""
    chosen = _turns(row["chosen"], "chosen")
    rejected = _turns(row["rejected"], "rejected")
    shared = 0  # turns at the start that are the same in both
    for first, second in zip(chosen, rejected, strict=False):
        if first != second:
            break
        shared += 1
    return [
        {
            "prompt": chosen[:shared],
            "chosen": _only_answer(chosen[shared:], "chosen"),
            "rejected": _only_answer(rejected[shared:], "rejected"),
            **_rest(row, "chosen", "rejected"),
        }
    ]


def _only_answer(turns: list[dict], column: str) -> str:
    """The text of the turns of a dialogue that the other one does not have. They must be one answer."""
    if [turn["role"] for turn in turns] != ["assistant"]:
        raise UserError(
            f"{column}: one answer after the shared turns is expected, {len(turns)} turns given"
        )
    return turns[0]["content"]


def _turns(dialogue: str, column: str) -> list[dict]:
    before, *parts = TURN.split(dialogue)  # speaker, text, speaker, text, ...
    if before.strip() or not parts:
        raise UserError(
            f"{column}: a dialogue that begins with '\\n\\nHuman:' is expected, {dialogue!r:.60} given"
        )
    turns: list[dict] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = "assistant"
        if speaker == "Human":
            role = "user"
        if turns and turns[-1]["role"] == role:
            # The same speaker twice in a row is one turn, because chat templates want turns to alternate.
            turns[-1]["content"] += "\n\n" + text.strip()
        else:
            turns.append({"role": role, "content": text.strip()})
    return turns


def _has_dialogues(row: dict) -> bool:
    """Tells HH-RLHF's dialogues from the answers of a preference, whose columns have the same names."""
    if "prompt" in row:
        return False
    for column in ("chosen", "rejected"):
        if not isinstance(row[column], str) or not TURN.search(row[column]):
            return False
    return True


# ---- rankings -------------------------------------------------------------------------------------------------------

COMPLETION = re.compile(r"completion_(\d+)")


def from_kochatgpt(row: dict) -> list[dict]:
    """{prompt, completion_0 .. completion_K-1, ranking}: ranking[i] is the rank of completion_i, 0 = best.

    That reading is the one of the project's own training code, which takes completion_i over completion_j as chosen
    where ranking[i] < ranking[j]. `ranking` is not a list of answers in order of merit.
    """
    columns = [column for column in row if COMPLETION.fullmatch(column)]
    columns.sort(key=lambda column: int(COMPLETION.fullmatch(column)[1]))  # 10 comes after 9
    completions = [row[column] for column in columns]
    rest = _rest(row, "prompt", "ranking", *columns)
    return [{"prompt": row["prompt"], "completions": completions, "ranks": row["ranking"], **rest}]


# ---- tags -----------------------------------------------------------------------------------------------------------


def from_ner_tags(row: dict) -> list[dict]:
    """{tokens, ner_tags}, as data sets of the Hub have it: `ner_tags` becomes `tags`."""
    return [{"tokens": row["tokens"], "tags": row["ner_tags"], **_rest(row, "tokens", "ner_tags")}]


def from_entities(row: dict) -> list[dict]:
    """{text, entities: [{start, end, label}]}, or triples, Doccano's start_offset or its `label`, Prodigy's `spans`.

    The text is cut into words with one tag each. A word is also cut where an entity begins or ends inside it. A text
    becomes characters if its script puts no spaces between words, or if it is Korean, whose words include particles.
    """
    column = _entity_column(row)
    text = row["text"]
    entities = sorted(_entity(entity, column) for entity in row[column])
    _check_entities(entities, text, column)
    if NO_SPACES.search(text):
        units = [(start, start + 1) for start in range(len(text))]  # each character
    else:
        units = _cut_at_entities(text, entities)
    tags = ["O"] * len(units)
    for start, end, label in entities:
        inside = [i for i, unit in enumerate(units) if start <= unit[0] and unit[1] <= end]
        if not inside:
            raise UserError(f"{column}: {text[start:end]!r} at character {start} holds no word")
        # BIO: B opens an entity and I continues it.
        for i in inside:
            tags[i] = f"I-{label}"
        tags[inside[0]] = f"B-{label}"
    tokens = [text[start:end] for start, end in units]
    # Our tokens come last: they replace Prodigy's, which are another cut of the text.
    return [{**_rest(row, "text", column), "tokens": tokens, "tags": tags}]


# Thai and Lao, Korean letters, Japanese, Chinese, Korean syllables.
NO_SPACES = re.compile("[\u0e00-\u0eff\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")

# Our name of each part of an entity, and the name that other tools give it.
ENTITY_KEYS = (("start", "start_offset"), ("end", "end_offset"), ("label", "type"))


def _entity(entity, column: str) -> tuple[int, int, str]:
    """(start, end, label) of an entity in any of the known forms."""
    parts = entity
    if isinstance(entity, dict):
        parts = [entity.get(ours, entity.get(theirs)) for ours, theirs in ENTITY_KEYS]
    if not isinstance(parts, list) or [type(part) for part in parts] != [int, int, str]:
        raise UserError(f"{column}: items {{start, end, label}} are expected, {parts!r:.60} given")
    return tuple(parts)


def _check_entities(entities: list[tuple[int, int, str]], text: str, column: str) -> None:
    """UserError where an entity is outside the text or overlaps the next one. They are in order."""
    for i, (start, end, _) in enumerate(entities):
        if not 0 <= start < end <= len(text):
            raise UserError(
                f"{column}: span {start}-{end} is outside the text ({len(text)} characters)"
            )
        if i + 1 < len(entities) and entities[i + 1][0] < end:
            raise UserError(
                f"{column}: two entities overlap at character {entities[i + 1][0]}: keep one of them"
            )


def _cut_at_entities(text: str, entities: list[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """(start, end) of the words of a text, cut further where an entity begins or ends."""
    borders = {start for start, _, _ in entities} | {end for _, end, _ in entities}
    units: list[tuple[int, int]] = []
    for start, end in cut_words(text):
        inside = sorted(border for border in borders if start < border < end)
        cuts = [start, *inside, end]
        units += zip(cuts, cuts[1:])  # a word without a border inside stays whole
    return units


def _entity_column(row: dict) -> str | None:
    """The column that holds the entities of a text."""
    for column in ("entities", "spans", "label"):
        if isinstance(row.get(column), list):
            return column
    return None


def _has_entities(row: dict) -> bool:
    column = _entity_column(row)
    if not isinstance(row["text"], str) or column is None:
        return False
    if column == "label":
        # A list of names belongs to a text with several labels.
        return any(isinstance(entity, list | dict) for entity in row["label"])
    return True


# ---- question answering ---------------------------------------------------------------------------------------------


def from_squad(row: dict) -> list[dict]:
    """SQuAD's article, one row per question.

    The article is {title, paragraphs: [{context, qas: [{id, question, answers, is_impossible}]}]}.
    """
    rest = _rest(row, "paragraphs")
    rows = []
    for i, paragraph in enumerate(_objects(row["paragraphs"], "paragraphs")):
        for question in _objects(paragraph.get("qas"), f"paragraphs: paragraph {i}: qas"):
            ours = {name: question.get(name) for name in ("id", "question", "answers")}
            if question.get("is_impossible") is True:
                ours["is_impossible"] = True
            ours["context"] = paragraph.get("context")
            rows.append(ours | rest)
    return rows


def _objects(value, location: str) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{location}: a list of objects is expected, {value!r:.60} given")
    return value


# ---- multiple choice ------------------------------------------------------------------------------------------------

SWAG_ENDINGS = ("ending0", "ending1", "ending2", "ending3")
UNLABELLED = (-1, "-1", "")  # in test rows, as numbers and in a table


def from_swag(row: dict) -> list[dict]:
    """SWAG (arXiv 1808.05326): each ending completes the beginning of a second sentence, which may be empty."""
    for column in ("sent2", *SWAG_ENDINGS):
        if not isinstance(row[column], str):
            raise UserError(f"{column}: a string is expected, {row[column]!r:.60} given")
    choices = []
    for column in SWAG_ENDINGS:
        if not row[column].strip():
            raise UserError(f"{column}: empty")
        choices.append(f"{row['sent2']} {row[column]}".strip())
    label = row.get("label")
    if label in UNLABELLED:
        label = None
    rest = _rest(row, "sent1", "sent2", *SWAG_ENDINGS, "label")
    return [{**rest, "text": row["sent1"], "choices": choices, "label": label}]


# ---- the table of all layouts ---------------------------------------------------------------------------------------


def _always(row: dict) -> bool:
    return True


@dataclass(frozen=True)
class Layout:
    """The form of the rows of another project.

    columns: those that a foreign row must have.
    kind: of our rows.
    convert: one foreign row -> our rows.
    fits: a look at the values, where other rows have the same columns.
    """

    name: str
    columns: tuple[str, ...]
    kind: str
    convert: Callable[[dict], list[dict]]
    fits: Callable[[dict], bool] = _always

    def matches(self, row: dict) -> bool:
        return row.keys() >= set(self.columns) and self.fits(row)

    def read(self, row: dict) -> list[dict]:
        if not self.matches(row):
            raise UserError(
                f"{', '.join(self.columns)}: not a {self.name} row; its columns are {', '.join(row)}"
            )
        return self.convert(row)


RANKING_COLUMNS = ("prompt", "completion_0", "completion_1", "ranking")
# The first layout that matches counts. HH-RLHF and the entities look at values, because our own rows have these columns.
LAYOUTS = (
    Layout("Alpaca", ("instruction", "output"), "prompt_completion", from_alpaca),
    Layout("Self-Instruct", ("instruction", "instances"), "prompt_completion", from_instances),
    Layout("ShareGPT", ("conversations",), "messages", from_sharegpt, _has_speakers),
    Layout("HH-RLHF", ("chosen", "rejected"), "preference", from_hh, _has_dialogues),
    Layout("KoChatGPT", RANKING_COLUMNS, "ranking", from_kochatgpt),
    Layout("SQuAD", ("paragraphs",), "question_answering", from_squad),
    Layout("SWAG", ("sent1", "sent2", *SWAG_ENDINGS), "multiple_choice", from_swag),
    Layout("ChatbotData", ("Q", "A"), "prompt_completion", from_question_answer),
    Layout("ner_tags", ("tokens", "ner_tags"), "ner", from_ner_tags),
    Layout("entities", ("text", "entities"), "ner", from_entities, _has_entities),
    Layout("spans", ("text", "spans"), "ner", from_entities, _has_entities),
    Layout("entities as label", ("text", "label"), "ner", from_entities, _has_entities),
)


def recognise_layout(row: dict) -> Layout | None:
    """The foreign layout of a row, or None where it has none of these."""
    for layout in LAYOUTS:
        if layout.matches(row):
            return layout
    return None
