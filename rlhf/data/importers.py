"""Converts rows of other projects to ours. Each importer is a pure function from one foreign row to a list of our rows.

A layout is recognised by its columns and, where those could mean something else, by a look at one value. Columns that
an importer does not use are kept. A row that cannot be converted raises UserError("column: reason").

Instructions are in instructions.py, conversations in conversations.py and rated answers in ratings.py. Here are the rows of
the encoder tasks, and the table of all layouts. Omitted: SQuAD's plausible answers to questions that have none.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rlhf.data.conversations import (
    from_openai_tools,
    from_sharegpt,
    from_weighted,
    has_messages,
    has_turns,
    has_weights,
)
from rlhf.data.instructions import (
    from_alpaca,
    from_alpaca_history,
    from_dolly,
    from_instances,
    from_question_answer,
)
from rlhf.data.judgements import from_event, is_event, thumbs_of_event
from rlhf.data.ratings import (
    OPENAI_PAIR,
    from_alpaca_pair,
    from_alpaca_thumb,
    from_dialogues,
    from_hh,
    from_kochatgpt,
    from_openai_pair,
    from_tree,
    from_turns_pair,
    from_turns_thumb,
    has_dialogues,
    has_hh_dialogues,
    has_rated_turns,
    has_thumb,
    has_turns_pair,
    rank_scored,
    rank_trees,
)
from rlhf.data.rows import without
from rlhf.data.words import cut_words
from rlhf.errors import UserError

# ---- tags -----------------------------------------------------------------------------------------------------------


def from_ner_tags(row: dict) -> list[dict]:
    """{tokens, ner_tags}, as data sets of the Hub have it: `ner_tags` becomes `tags`."""
    return [
        {"tokens": row["tokens"], "tags": row["ner_tags"], **without(row, "tokens", "ner_tags")}
    ]


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
    return [{**without(row, "text", column), "tokens": tokens, "tags": tags}]


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
    rest = without(row, "paragraphs")
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
    rest = without(row, "sent1", "sent2", *SWAG_ENDINGS, "label")
    return [{**rest, "text": row["sent1"], "choices": choices, "label": label}]


# ---- the table of all layouts ---------------------------------------------------------------------------------------


def _always(row: dict) -> bool:
    return True


@dataclass(frozen=True)
class Layout:
    """The form of the rows of another project.

    columns: those that a foreign row must have.
    kind: of our rows.
    convert: one foreign row -> our rows, and a Dropped for each part that is passed over.
    fits: a look at the values, where other rows have the same columns.
    base: not (): one row of this layout decides for its file, and the other rows need only these columns.
    gather: (location, row) of all rows of a file, and the column that ranks them -> (location, row of ours), where the
    answers of one prompt are in several rows. An error in the place of a row says why it is bad.
    is_scored: `rank_by` must name the column that ranks them.
    """

    name: str
    columns: tuple[str, ...]
    kind: str
    convert: Callable[[dict], list[dict]] | None = None
    fits: Callable[[dict], bool] = _always
    base: tuple[str, ...] = ()
    gather: Callable | None = None
    is_scored: bool = False

    def matches(self, row: dict) -> bool:
        return row.keys() >= set(self.columns) and self.fits(row)

    def check(self, row: dict) -> None:
        """UserError for a row that this layout cannot read."""
        is_readable = self.matches(row)
        if self.base:
            is_readable = row.keys() >= set(self.base)
        if not is_readable:
            raise UserError(
                f"{', '.join(self.columns)}: not a {self.name} row; its columns are {', '.join(row)}"
            )

    def read(self, row: dict) -> list[dict]:
        self.check(row)
        return self.convert(row)


TURNS, MESSAGES = ("conversations",), ("messages",)
ALPACA = ("instruction", "output")
PAIR = ("chosen", "rejected")
RANKING_COLUMNS = ("prompt", "completion_0", "completion_1", "ranking")
HELPSTEER = ("prompt", "response", "helpfulness")
MESSAGE = ("message_id", "parent_id", "text", "role")

_pairs = partial(Layout, kind="preference")
_thumbs = partial(Layout, kind="unpaired_preference")
_rankings = partial(Layout, kind="ranking")
_demonstrations = partial(Layout, kind="prompt_completion")
_messages = partial(Layout, kind="messages")
_entities = partial(Layout, kind="ner", convert=from_entities, fits=_has_entities)

FEEDBACK = _rankings("feedback", ("event", "schema"), convert=from_event, fits=is_event)
# The first layout that matches counts, so those with ratings come before those without. Some look at values, because our
# own rows have the same columns.
LAYOUTS = (
    FEEDBACK,
    _pairs("ShareGPT pairs", (*TURNS, *PAIR), convert=from_turns_pair, fits=has_turns_pair),
    _pairs("messages pairs", (*MESSAGES, *PAIR), convert=from_turns_pair, fits=has_turns_pair),
    _pairs("Alpaca pairs", ("instruction", *PAIR), convert=from_alpaca_pair),
    _pairs("OpenAI pairs", OPENAI_PAIR, convert=from_openai_pair),
    _pairs("whole conversations", PAIR, convert=from_dialogues, fits=has_dialogues),
    _pairs("HH-RLHF", PAIR, convert=from_hh, fits=has_hh_dialogues),
    _thumbs("ShareGPT KTO", TURNS, convert=from_turns_thumb, fits=has_rated_turns, base=TURNS),
    _thumbs(
        "messages KTO", MESSAGES, convert=from_turns_thumb, fits=has_rated_turns, base=MESSAGES
    ),
    _thumbs("Alpaca KTO", ALPACA, convert=from_alpaca_thumb, fits=has_thumb, base=ALPACA),
    _rankings("KoChatGPT", RANKING_COLUMNS, convert=from_kochatgpt),
    _rankings("HelpSteer", HELPSTEER, gather=rank_scored, is_scored=True),
    _rankings("OpenAssistant trees", ("message_tree_id", "prompt"), convert=from_tree),
    _rankings("OpenAssistant messages", MESSAGE, gather=rank_trees),
    _messages(
        "Alpaca with history", (*ALPACA, "history"), convert=from_alpaca_history, base=ALPACA
    ),
    _demonstrations("Alpaca", ALPACA, convert=from_alpaca),
    _demonstrations("Dolly", ("instruction", "context", "response"), convert=from_dolly),
    _demonstrations("Self-Instruct", ("instruction", "instances"), convert=from_instances),
    _demonstrations("ShareGPT weights", TURNS, convert=from_weighted, fits=has_weights, base=TURNS),
    _messages("ShareGPT", TURNS, convert=from_sharegpt, fits=has_turns),
    _demonstrations(
        "OpenAI weights", MESSAGES, convert=from_weighted, fits=has_weights, base=MESSAGES
    ),
    _messages(
        "OpenAI tools",
        (*MESSAGES, "tools"),
        convert=from_openai_tools,
        fits=has_messages,
        base=MESSAGES,
    ),
    _messages(
        "OpenAI functions",
        (*MESSAGES, "functions"),
        convert=from_openai_tools,
        fits=has_messages,
        base=MESSAGES,
    ),
    Layout("SQuAD", ("paragraphs",), "question_answering", from_squad),
    Layout("SWAG", ("sent1", "sent2", *SWAG_ENDINGS), "multiple_choice", from_swag),
    _demonstrations("ChatbotData", ("Q", "A"), convert=from_question_answer),
    Layout("ner_tags", ("tokens", "ner_tags"), "ner", from_ner_tags),
    _entities("entities", ("text", "entities")),
    _entities("spans", ("text", "spans")),
    _entities("entities as label", ("text", "label")),
)
# Not recognised by itself: rows of ours with a number that `rank_by` names.
SCORED = _rankings("scored answers", ("prompt",), gather=rank_scored, is_scored=True)


# The same events where only thumbs are read.
FEEDBACK_THUMBS = _thumbs("feedback", FEEDBACK.columns, convert=thumbs_of_event, fits=is_event)


def recognise_layout(row: dict) -> Layout | None:
    """The foreign layout of a row, or None where it has none of these."""
    for layout in LAYOUTS:
        if layout.matches(row):
            return layout
    return None


CONVERSATIONS = ("instruction", "messages", "conversations", "Q")


def conversation_columns(row: dict) -> list[str]:
    """The columns that hold a conversation or an instruction. Of two, it is not known which is to be learned."""
    columns = [column for column in CONVERSATIONS if row.get(column)]
    if set(PAIR) <= row.keys() and has_dialogues(row):
        return []  # UltraFeedback's messages repeat the chosen conversation
    # With messages, a prompt alone repeats the first of them (UltraChat). With an instruction, it is another text.
    is_demonstration = bool(row.get("prompt") and row.get("completion"))
    if row.get("prompt") and (is_demonstration or row.get("instruction") or row.get("Q")):
        columns.insert(1, "prompt")
    return columns
