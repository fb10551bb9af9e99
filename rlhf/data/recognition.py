"""Recognises the rows of a source: their layout, their kind, and the kind into which they are converted.

The first rows decide by majority, except that a single rated answer is enough: to read it like the others would teach
bad answers. Where the columns allow two readings, the source is refused with what the user can do.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain

from rlhf.data.importers import (
    FEEDBACK,
    FEEDBACK_THUMBS,
    SCORED,
    Layout,
    conversation_columns,
    recognise_layout,
)
from rlhf.data.ratings import THUMBS, answer_column, score_columns, thumb_column
from rlhf.data.rows import (
    DEMONSTRATIONS,
    KINDS,
    RATED,
    needs_rating,
    number,
    recognise,
    serves,
    thumb,
)
from rlhf.errors import UserError

# What a user can do who wants to learn demonstrations and has rated answers.
GOOD_ANSWERS = {
    "unpaired_preference": "good_answers: true learns the answers with the label true",
    "preference": "good_answers: true learns the chosen answers",
    "ranking": "good_answers: true learns the best answers, which have rank 0",
}
# Columns of conversations and answers, which a row of several merged files need not have.
OPTIONAL = "prompt completion messages conversations instruction output history chosen rejected completions ranks".split()
# Columns that may be the answer to a prompt.
ANSWER_NAMES = "response answer output target reply assistant".split()
# Columns that may say how good the answer of a demonstration is.
RATING_NAMES = "label score scores rating ratings reward rewards rank quality helpfulness upvotes votes feedback".split()


@dataclass(frozen=True)
class Ratings:
    """The treatment of rated answers.

    good_answers: make demonstrations of the good ones, which is never done without being asked for.
    rank_by: the column with a number by which the answers of a prompt are ranked, where each is a row of its own.
    must_rank: refuse rows that are rankings already, in which rank_by ranks nothing.
    """

    good_answers: bool = False
    rank_by: str | None = None
    must_rank: bool = True


AS_THEY_ARE = Ratings()


class Form:
    """The form of the rows of a source, once `read` has looked at the first of them.

    layout: the foreign layout, or None.
    source_kind: the kind of the rows. kind: the one of `kinds` into which they are converted.
    unread_ratings: columns of demonstrations that may say how good an answer is, which nothing reads.
    only_values: columns that may be thumbs -> the number that all of the first rows have there.
    """

    def __init__(self, name: str, kinds: tuple[str, ...], ratings: Ratings):
        self.name = name
        self.kinds = kinds
        self.ratings = ratings
        self.layout: Layout | None = None
        self.source_kind = ""
        self.kind = ""
        self.unread_ratings: list[str] = []
        self.only_values: dict[str, float] = {}

    def read(self, rows: list[dict], names: list[str]) -> None:
        """Recognises the first rows, which have our names. UserError where no kind fits, or two readings do.

        names: of all columns, as the source calls them.
        """
        self.layout, self.source_kind = self._elect(rows) or (None, "")
        if not self.source_kind:
            raise UserError(self._unknown_form(names))
        if self.source_kind in (*RATED, *DEMONSTRATIONS):
            self._refuse_two_readings(rows)
        self._check_rank_by(rows, names)
        self.kind = self._kind_of_rows()
        if not self.kind:
            raise UserError(self._not_accepted(names))
        if self.source_kind in DEMONSTRATIONS and not self._is_topic():
            columns = dict.fromkeys(chain.from_iterable(rows))
            for column in columns:
                is_filled = any(row.get(column) is not None for row in rows)
                if is_filled and column.lower() in RATING_NAMES:
                    self.unread_ratings.append(column)

    def ranks_thumbs(self) -> bool:
        """True if thumbs are to become rankings, as `rank_by: label` asks for."""
        return self.source_kind == "unpaired_preference" and self.ratings.rank_by == "label"

    def _elect(self, rows: list[dict]) -> tuple[Layout | None, str] | None:
        """The layout and the kind of a source by a majority of its first rows, or None where no row has any."""
        votes: Counter[tuple[Layout | None, str]] = Counter()
        for row in rows:
            vote = self._vote(row)
            if vote:
                votes[vote] += 1
        # Of two with equally many votes, the one that was met first.
        ranked = [vote for vote, _ in votes.most_common()]
        for layout, kind in ranked:
            # One rated row is enough: to read it like the others would teach bad answers.
            if needs_rating(kind, self.kinds):
                return layout, kind
        for layout, kind in ranked:
            if layout and layout.base:
                readable = [row for row in rows if row.keys() >= set(layout.base)]
                if 2 * len(readable) > len(rows):
                    return layout, kind
        return next(iter(ranked), None)

    def _kind_of_rows(self) -> str:
        """The accepted kind into which the rows are converted, "" where there is none."""
        if self.ranks_thumbs() and "ranking" in self.kinds:
            return "ranking"
        if self.ratings.good_answers and self.source_kind in RATED:
            return "prompt_completion"
        return serves(self.source_kind, self.kinds) or ""

    def _not_accepted(self, names: list[str]) -> str:
        """The message for rows of a kind that the caller does not read. names: of all columns."""
        form = f"{self.source_kind} rows"
        if self.layout:
            form = f"{self.layout.name} rows ({self.source_kind})"
        recipes = " and ".join(KINDS[self.source_kind].recipes)
        advice = ""
        if needs_rating(self.source_kind, self.kinds):
            advice = f"; {GOOD_ANSWERS[self.source_kind]}"
        elif self.source_kind == "unpaired_preference" and "ranking" in self.kinds:
            advice = "; rank_by: label ranks the answers of the prompts that have good and bad ones"
        elif self.source_kind == "scored" and "ranking" in self.kinds:
            advice = "; rank_by: score ranks the answers to each prompt"
        elif self.source_kind == "prompt" and "prompt_completion" in self.kinds:
            answers = [name for name in names if name.lower() in ANSWER_NAMES]
            if answers:
                advice = f"; if {answers[0]} is the answer, name it with columns: {{completion: {answers[0]}}}"
        return (
            f"{self.name}: recognised as {form}; this recipe takes {' or '.join(self.kinds)}; "
            f"{self.source_kind} rows are for {recipes}{advice}"
        )

    def _refuse_two_readings(self, rows: list[dict]) -> None:
        """UserError where the columns allow two readings that would teach different answers."""
        for row in rows:
            columns = conversation_columns(row)
            if len(columns) > 1:
                raise UserError(
                    f"{self.name}: {' and '.join(columns)} could each be what is learned: rename the others, as in "
                    f"columns: {{unused: {columns[1]}}}"
                )
        if self.source_kind not in DEMONSTRATIONS:
            return
        column = next(filter(None, map(thumb_column, rows)), None)
        if column:
            raise UserError(
                f"{self.name}: {column} rates the answers, and {self.source_kind} rows have no rating: name it with "
                f"columns: {{label: {column}}}, or rename it if it means something else"
            )
        if self._is_topic():
            return
        for column in THUMBS:
            values = {number(row.get(column)) for row in rows} - {None}
            if values == {0, 1} or (values and column == "kto_tag"):
                raise UserError(f"{self.name}: {bit_problem(column)}")
            if len(values) == 1:
                self.only_values[column] = values.pop()

    def _is_topic(self) -> bool:
        """True for the one layout whose label is known to be a topic."""
        return self.layout is not None and self.layout.name == "ChatbotData"

    def _check_rank_by(self, rows: list[dict], names: list[str]) -> None:
        """UserError where answers are to be ranked by a column that is not named, or is not there."""
        score = self.ratings.rank_by
        is_scored = self.layout is not None and self.layout.is_scored
        is_ranked = self.source_kind in ("ranking", "preference") and not self.ratings.must_rank
        if score and not is_scored and not self.ranks_thumbs() and not is_ranked:
            raise UserError(
                f"{self.name}: rank_by={score} ranks rows of prompt, response (or completion) and the column {score!r}; "
                f"the columns are {', '.join(names)}"
            )
        if is_scored and not score:
            raise UserError(
                f"{self.name}: recognised as {self.layout.name} rows, whose answers have scores: choose the one by which "
                f"they are ranked with rank_by: {' or '.join(score_columns(rows[0]))}"
            )

    def _vote(self, row: dict) -> tuple[Layout | None, str] | None:
        """(foreign layout or None, kind) of one row. None: it fits neither a layout nor a kind.

        A row that fits both is foreign, unless only its own kind is accepted.
        """
        row = _present(row)
        layout = recognise_layout(row)
        if layout is FEEDBACK and self.reads_thumbs():
            layout = FEEDBACK_THUMBS
        if self._is_scored(row):
            layout = SCORED
        kind = recognise(row, self.kinds)
        if layout is None and kind is None:
            return None
        if layout is None:
            return None, kind.name
        is_kind_accepted = kind is not None and serves(kind.name, self.kinds)
        # To rank answers takes a choice, which is not needed where only the prompts are read.
        is_layout_served = serves(layout.kind, self.kinds) and not layout.is_scored
        is_wanted = is_layout_served or needs_rating(layout.kind, self.kinds) or layout is SCORED
        if is_kind_accepted and not is_wanted:
            return None, kind.name
        return layout, layout.kind

    def reads_thumbs(self) -> bool:
        """True where thumbs are read and no rankings: by kto."""
        return "unpaired_preference" in self.kinds and "ranking" not in self.kinds

    def _is_scored(self, row: dict) -> bool:
        """True for an answer with a number in the column by which answers are ranked."""
        score = self.ratings.rank_by
        has_answer = {"prompt", answer_column(row)} <= row.keys()
        return score in row and has_answer and thumb(row[score]) is None

    def _unknown_form(self, names: list[str]) -> str:
        """The message for a source whose columns fit neither a kind nor a foreign layout."""
        needed = []
        missing = set()
        for kind in self.kinds:
            columns = KINDS[kind].columns
            needed.append(f"{kind}: {', '.join(columns)}")
            missing.update(column for column in columns if column not in names)
        hints = (nearest_name(column, names) for column in sorted(missing))
        hint = next(filter(None, hints), "")  # one hint is enough
        return (
            f"{self.name}: no known row form; the columns are {', '.join(names)}; needed are {'; '.join(needed)}{hint}; "
            "map names with columns (our name: their name)"
        )


def _present(row: dict) -> dict:
    """A row without the empty columns of conversations: parquet gives every row the columns of all rows.

    Other columns count as they are: a text whose label is missing is still a row of a classification file.
    """
    return {name: value for name, value in row.items() if value is not None or name not in OPTIONAL}


def bit_problem(column: str) -> str:
    """The message for a column of 0 and 1 in rows with answers, which may rate them."""
    return (
        f"{column} is 0 or 1: if it rates the answers, write true and false; if it does not, rename it, as in columns: "
        f"{{topic: {column}}}"
    )


def nearest_name(name: str, names: Iterable[str]) -> str:
    """A hint at the most similar of the names, or ""."""
    # Wrong case is a common mistake, which get_close_matches would count as other letters.
    lowered = {other.lower(): other for other in names}
    nearest = get_close_matches(name.lower(), lowered, n=1)
    if not nearest:
        return ""
    return f"; did you mean {lowered[nearest[0]]!r} for {name}?"
