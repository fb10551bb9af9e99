"""Tagged words: the schemes that tags are written in, and words -> tokens with a tag, and back.

All schemes are read as one, BIO (IOB2): B-x begins an entity of type x, I-x goes on with it. A *unit* is what has a tag: a
word, or a character where the data tag characters. A row's text is its units joined (words by a space); it is tokenized as
such a text is at any other time, and a unit's tag belongs to the first token that begins in it. So a Korean character row is
read in the pieces of words that a pretrained model knows, as KLUE's baseline does; a unit without a token of its own (a
space, the second character of a piece) takes its tag from its neighbours, and `out_of_reach` counts what that costs.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rlhf.data.words import URL
from rlhf.errors import UserError

OUTSIDE = "O"
# Other letters for the same: BILOU and BMEWO for BIOES.
PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
OVERLAP = 4  # windows of a long text share a 4th of their tokens
CHARACTERS = 0.95  # share of units of one character from which the data tag characters

Entity = tuple[str, int, int]  # type, first and last unit


# ---- schemes -----------------------------------------------------------------------------------------------------


def split_tag(tag: str) -> tuple[str, str]:
    """(letter, type) of a tag: ("B", "per") of "B-per"; ("", "per") of a bare "per"; ("O", "") outside."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if tag in PREFIXES:
        return PREFIXES[tag], "entity"  # data of a single type often leave it out
    letter, dash, kind = tag.partition("-")
    return (PREFIXES[letter], kind) if dash and kind and letter in PREFIXES else ("", tag)


def find_scheme(sentences: Sequence[Sequence[str]]) -> str:
    """BIO, IOB1, BIOES or IO (bare types), by the tags of all sentences; UserError where bare types stand among others."""
    bare: Counter[str] = Counter()
    letters: set[str] = set()
    for tags in sentences:
        for tag in tags:
            letter, kind = split_tag(tag)
            letters.add(letter)
            if not letter:
                bare[kind] += 1
    if bare and letters & {"B", "I", "E", "S"}:
        tag, count = bare.most_common(1)[0]
        place = next(place for place, tags in enumerate(sentences, start=1) if tag in tags)
        raise UserError(
            f"the tag {tag!r} ({count} times, first in sentence {place}) is neither O nor a letter and a type as in "
            "B-person, which the other tags are: write all in one scheme (BIO, IOB1, BIOES, BILOU, or bare types)"
        )
    if bare:
        return "IO"
    if letters & {"E", "S"}:
        return "BIOES"
    # IOB1 writes B- only to part two neighbours of one type, BIO at every beginning
    begins: Counter[tuple[str, bool]] = Counter()
    for tags in sentences:
        for before, tag in zip([OUTSIDE, *tags], tags):
            begins[split_tag(tag)[0], split_tag(before)[1] == split_tag(tag)[1]] += 1
    return "IOB1" if begins["I", False] and not begins["B", False] else "BIO"


def to_bio(tags: Sequence[str], scheme: str) -> tuple[list[str], int]:
    """Tags of any scheme in BIO, and how many of them break their scheme and were read as the beginning of an entity."""
    found, broken, open_kind, whole = [], 0, None, True
    for tag in tags:
        letter, kind = split_tag(tag)
        goes_on = letter in ("I", "E", "") and kind == open_kind
        if scheme == "BIOES" and not whole and not goes_on:
            broken += 1  # the entity before was not ended
        elif letter in ("I", "E") and not goes_on and scheme in ("BIO", "BIOES"):
            broken += 1
        found.append(OUTSIDE if letter == OUTSIDE else f"{'I' if goes_on else 'B'}-{kind}")
        open_kind = None if letter in (OUTSIDE, "E", "S") else kind
        whole = letter in (OUTSIDE, "E", "S")
    if scheme == "BIOES" and not whole:
        broken += 1
    return found, broken


def entities(tags: Iterable[str]) -> list[Entity]:
    """The entities of BIO tags, strictly: an I-x that goes on with nothing is no entity."""
    found: list[Entity] = []
    open_kind = None
    for place, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if letter == "B":
            found.append((kind, place, place))
            open_kind = kind
        elif letter == "I" and kind == open_kind:
            found[-1] = (kind, found[-1][1], place)
        else:
            open_kind = None
    return found


def in_bio(train: list[dict], evaluation: list[dict]) -> tuple[list[dict], list[dict], str, int]:
    """Both in BIO, the scheme they were written in, and how many of their tags broke it."""
    scheme = find_scheme([row["tags"] for row in train + evaluation])
    broken = 0

    def convert(rows: list[dict]) -> list[dict]:
        nonlocal broken
        converted = []
        for row in rows:
            tags, repaired = to_bio(row["tags"], scheme)
            converted.append({**row, "tags": tags})
            broken += repaired
        return converted

    return convert(train), convert(evaluation), scheme, broken


def type_counts(rows: Iterable[dict]) -> Counter:
    """How many entities of each type rows in BIO have."""
    return Counter(kind for row in rows for kind, _, _ in entities(row["tags"]))


def tag_names(rows: Sequence[dict]) -> list[str]:
    """The labels of a tagger for training rows in BIO: O, then B-x and I-x of each type by the alphabet."""
    kinds = sorted(type_counts(rows))
    if not kinds:
        raise UserError(
            f"none of the {len(rows)} training rows has an entity (all tags are O): there is nothing to learn"
        )
    return [OUTSIDE, *(f"{letter}-{kind}" for kind in kinds for letter in "BI")]


def check_types(rows: Sequence[dict], labels: Sequence[str]) -> None:
    """UserError where evaluation rows have a type of entity that no training row has."""
    known = {label[2:] for label in labels[1:]}
    unknown = {
        kind: count for kind, count in sorted(type_counts(rows).items()) if kind not in known
    }
    if unknown:
        first = {
            kind: next(n for n, row in enumerate(rows, 1) if f"B-{kind}" in row["tags"])
            for kind in unknown
        }
        shown = ", ".join(
            f"{kind!r} ({count}, first in row {first[kind]})"
            for kind, count in list(unknown.items())[:10]
        )
        raise UserError(
            f"no training row has an entity of the type {shown} of the evaluation rows. Types of the training rows: "
            f"{', '.join(sorted(known))}. Give them rows with it, remove it from the evaluation rows, or, where one file "
            "is split, take another seed or eval_fraction"
        )


def warnings_of(
    train: Sequence[dict], evaluation: Sequence[dict], scheme: str, broken: int
) -> list[str]:
    """What a person should know of rows in BIO before they train on them, each thing counted."""
    warnings = []
    if broken:
        warnings.append(
            f"{broken} tags break {scheme}; each is read as a new entity, or as the end of one"
        )
    counts, judged = type_counts(train), type_counts(evaluation)
    if single := sorted(kind for kind, count in counts.items() if count == 1):
        warnings.append(
            f"{len(single)} types have a single entity to learn from: {', '.join(single)}"
        )
    if unjudged := sorted(counts.keys() - judged.keys()):
        warnings.append(
            f"{len(unjudged)} types are in no evaluation row and not judged: {', '.join(unjudged)}"
        )
    return warnings


# ---- units and text ----------------------------------------------------------------------------------------------


def find_units(rows: Iterable[dict]) -> str:
    """ "characters" where (nearly) every token of the rows is one, else "words"."""
    single = Counter(len(token) == 1 for row in rows for token in row["tokens"])
    return "characters" if single[True] >= CHARACTERS * single.total() else "words"


def find_joints(rows: Iterable[dict]) -> tuple[str, str]:
    """The signs that stand inside words of the rows ("-" of "well-known"), and in front of them ("@" of "@ada").

    Each data set cuts its words in its own way, 12:30 or 12 : 30, and a text must be cut as the data were. A sign counts
    that is in a word once for 20 times alone.
    """
    alone, inside, before = Counter(), Counter(), Counter()
    for token in (token for row in rows for token in row["tokens"]):
        if re.fullmatch(URL, token):
            continue
        if len(token) == 1:
            alone[token] += 1
        inside.update(re.findall(r"(?<=\w)[^\w\s](?=\w)", token))
        before.update(re.findall(r"^[^\w\s](?=\w)", token))
    return tuple(
        "".join(sorted(c for c in found if found[c] * 20 >= alone[c])) for found in (inside, before)
    )


def join(tokens: Sequence[str], units: str) -> tuple[str, list[int]]:
    """The text of a row, and the character that each of its units begins at."""
    glue = "" if units == "characters" else " "
    ends = accumulate(len(token) + len(glue) for token in tokens)
    return glue.join(tokens), [0, *ends][: len(tokens)]


# ---- tokens ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenWindow:
    """Tokens of the text of row `row`, or of a part of it.

    heads: (token, unit, last unit) for each unit with a token of its own: the place of its first one, and how far its
    tokens reach.
    """

    row: int
    inputs: dict[str, list[int]]
    heads: list[tuple[int, int, int]]


def windows(tokenizer, rows: Sequence[dict], *, units: str, max_length: int) -> list[TokenWindow]:
    """Rows of tokens -> windows of at most max_length token ids. No text can spell a special token.

    A longer text is split into windows that overlap; a unit's tag is decided in the one where it stands more in the middle.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "tags need a tokenizer that knows where its tokens stand in the text: give a fast one"
        )
    frame = tokenizer("a", return_special_tokens_mask=True)
    text_at = [place for place, special in enumerate(frame["special_tokens_mask"]) if not special]
    opening, closing = frame["input_ids"][: text_at[0]], frame["input_ids"][text_at[-1] + 1 :]
    room = max_length - len(opening) - len(closing)
    if room < 1:
        raise UserError(
            f"max_length={max_length} leaves no room for a text: raise it, up to the model's context"
        )
    found = []
    for row_place, row in enumerate(rows):
        text, starts = join(row["tokens"], units)
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids, first, reach = encoded["input_ids"], {}, {}
        for place, (start, end) in enumerate(encoded["offset_mapping"]):
            while (
                start < end - 1 and text[start].isspace()
            ):  # GPT-2 has the space in front in its token
                start += 1
            if start < end:
                unit = bisect_right(starts, start) - 1
                first.setdefault(unit, place)
                reach[unit] = bisect_right(starts, end - 1) - 1
        for start, end, decided, until in _spans(len(ids), room):
            inputs = {"input_ids": [*opening, *ids[start:end], *closing]}
            for name in tokenizer.model_input_names[1:]:
                inputs[name] = [int(name == "attention_mask")] * len(inputs["input_ids"])
            heads = [
                (place - start + len(opening), unit, reach[unit])
                for unit, place in first.items()
                if decided <= place < until
            ]
            found.append(TokenWindow(row_place, inputs, heads))
    return found


def _spans(length: int, room: int) -> list[tuple[int, int, int, int]]:
    """(start, end, first, last): tokens of each window, and those of it that no other window decides."""
    if length <= room:
        return [(0, length, 0, length)]
    starts = list(range(0, length - room, room - room // OVERLAP)) + [length - room]
    borders = [
        0,
        *((later + start + room) // 2 for start, later in zip(starts, starts[1:])),
        length,
    ]
    return [
        (start, start + room, *between) for start, between in zip(starts, zip(borders, borders[1:]))
    ]


def encode_windows(
    found: Iterable[TokenWindow], rows: Sequence[dict], labels: Sequence[str]
) -> list[dict]:
    """Windows as rows to train on: the number of a unit's tag at its first token, -100 (no loss) everywhere else."""
    number = {label: place for place, label in enumerate(labels)}
    encoded = []
    for window in found:
        numbers = [-100] * len(window.inputs["input_ids"])
        for place, unit, _ in window.heads:
            numbers[place] = number[rows[window.row]["tags"][unit]]
        encoded.append({**window.inputs, "labels": numbers})
    return encoded


def decode_windows(
    found: Iterable[TokenWindow], marks: Iterable[Sequence[str]], rows: Sequence[dict]
) -> list[list[str]]:
    """Legal BIO tags of every unit of every row, from the tags at the heads of its windows.

    Units that a token reaches into go on with its entity. Units that no token stands for (white space, mostly) are inside
    where the entity goes on behind them. An I-x with nothing to go on with begins an entity, as conlleval reads it.
    """
    tags: list[list[str | None]] = [[None] * len(row["tokens"]) for row in rows]
    for window, marked in zip(found, marks, strict=True):
        row = tags[window.row]
        for (_, unit, last), tag in zip(window.heads, marked, strict=True):
            row[unit] = tag
            row[unit + 1 : last + 1] = [_going_on(tag)] * (last - unit)
    return [to_bio(_filled(row), "BIO")[0] for row in tags]


def _going_on(tag: str) -> str:
    return tag if tag == OUTSIDE else f"I-{tag[2:]}"


def _filled(tags: list[str | None]) -> list[str]:
    behind = [*tags, OUTSIDE]
    for place in reversed(range(len(tags))):
        behind[place] = behind[place + 1] if tags[place] is None else tags[place]
    filled: list[str] = []
    for tag, after in zip(tags, behind):
        before = _going_on(filled[-1]) if filled else OUTSIDE
        filled.append(tag or (before if after == before else OUTSIDE))
    return filled


def out_of_reach(found: Sequence[TokenWindow], rows: Sequence[dict]) -> int:
    """Entities that even a perfect model cannot mark, because one of their ends stands inside a token."""
    marks = [[rows[window.row]["tags"][unit] for _, unit, _ in window.heads] for window in found]
    best = decode_windows(found, marks, rows)
    return sum(
        len(set(entities(row["tags"])) - set(entities(tags)))
        for row, tags in zip(rows, best, strict=True)
    )
