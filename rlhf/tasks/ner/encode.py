"""Tagged words: the schemes that tags are written in, and words -> tokens with a tag, and back.

Tags of every scheme are converted to BIO (IOB2): B-x begins an entity of type x, I-x continues it. A *unit* carries one
tag: a word, or a character where the data tag characters. The text of a row is its units, joined by a space if they are
words. It is tokenized like any other text, and a unit's tag goes to the first token that begins in it. So a Korean
character row is read in the word pieces that a pretrained model knows, as in KLUE's baseline. A unit without a token of
its own (a space, the second character of a piece) takes its tag from its neighbours. `out_of_reach` counts what that
costs.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

from rlhf.data.encodings import Converted, EncodedRows, encode_once, input_columns
from rlhf.data.fingerprints import fingerprint
from rlhf.data.padding import IGNORED
from rlhf.data.stored_numbers import LISTS, NUMBER, NUMBERS
from rlhf.data.words import URL
from rlhf.errors import UserError

OUTSIDE = "O"
# Schemes differ in their letters: BILOU and BMEWO are BIOES with other names.
PREFIXES = {
    "B": "B",
    "I": "I",
    "M": "I",
    "E": "E",
    "L": "E",
    "S": "S",
    "U": "S",
    "W": "S",
}
OVERLAP = 4  # windows of a long text share a 4th of their tokens
CHARACTERS = 0.95  # share of one-character units from which the data tag characters
JOINT_RATIO = 20  # a sign joins words if it occurs inside a word once per 20 times alone
TYPES_SHOWN = 10  # unknown types in an error message

Entity = tuple[str, int, int]  # type, first and last unit


# ---- schemes -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def split_tag(tag: str) -> tuple[str, str]:
    """(letter, type) of a tag: ("B", "per") of "B-per", ("", "per") of a bare "per", ("O", "") outside."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if tag in PREFIXES:
        return PREFIXES[tag], "entity"  # data with a single type often omit its name
    letter, dash, kind = tag.partition("-")
    if dash and kind and letter in PREFIXES:
        return PREFIXES[letter], kind
    return "", tag


def find_scheme(sentences: Iterable[Sequence[str]]) -> str:
    """BIO, IOB1, BIOES or IO (bare types), decided on the tags of all sentences.

    UserError where bare types are mixed with tags that have a letter.
    """
    bare_types: Counter[str] = Counter()
    first: dict[str, int] = {}  # number of the sentence in which a bare type is first
    letters: set[str] = set()
    # IOB1 writes B- only between two neighbours of one type, BIO at the start of every entity.
    begins_with_i = begins_with_b = False
    for number, tags in enumerate(sentences, start=1):
        for before, tag in pairwise([OUTSIDE, *tags]):
            letter, kind = split_tag(tag)
            letters.add(letter)
            if not letter:
                bare_types[kind] += 1
                first.setdefault(kind, number)
            if kind != split_tag(before)[1]:
                begins_with_i |= letter == "I"
                begins_with_b |= letter == "B"
    if bare_types and letters & {"B", "I", "E", "S"}:
        raise UserError(_mixed_schemes(bare_types, first))
    if bare_types:
        return "IO"
    if letters & {"E", "S"}:
        return "BIOES"
    if begins_with_i and not begins_with_b:
        return "IOB1"
    return "BIO"


def _mixed_schemes(bare_types: Counter[str], first: dict[str, int]) -> str:
    """Error text that names the most frequent bare type and where it first occurs."""
    tag, count = bare_types.most_common(1)[0]
    return (
        f"the tag {tag!r} ({count} times, first in sentence {first[tag]}) is neither O nor a letter and a type as in "
        "B-person, which the other tags are: write all in one scheme (BIO, IOB1, BIOES, BILOU, or bare types)"
    )


def to_bio(tags: Sequence[str], scheme: str) -> tuple[list[str], int]:
    """Convert the tags of one sentence from any scheme to BIO.

    Also returns how many tags break their scheme. An I- or E- that continues nothing is read as the beginning of an
    entity.
    """
    bio_tags: list[str] = []
    broken = 0
    open_kind = None  # type of the entity that the next tag may continue
    ended = True  # False inside an entity that BIOES requires to be ended by an E-
    for tag in tags:
        letter, kind = split_tag(tag)
        continues = letter in ("I", "E", "") and kind == open_kind
        if scheme == "BIOES" and not ended and not continues:
            broken += 1  # the previous entity has no E-
        elif scheme in ("BIO", "BIOES") and letter in ("I", "E") and not continues:
            broken += 1

        if letter == OUTSIDE:
            bio_tags.append(OUTSIDE)
        elif continues:
            bio_tags.append(f"I-{kind}")
        else:
            bio_tags.append(f"B-{kind}")

        ended = letter in (OUTSIDE, "E", "S")
        open_kind = None if ended else kind
    if scheme == "BIOES" and not ended:
        broken += 1
    return bio_tags, broken


def entities(tags: Iterable[str]) -> list[Entity]:
    """The entities of BIO tags, read strictly: an I-x that continues nothing is not an entity."""
    spans: list[Entity] = []
    open_kind = None
    for i, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if letter == "B":
            spans.append((kind, i, i))
            open_kind = kind
        elif letter == "I" and kind == open_kind:
            _, first, _ = spans[-1]
            spans[-1] = (kind, first, i)
        else:
            open_kind = None
    return spans


class RowsInBio(Sequence):
    """Tagged rows in BIO, which are converted from their scheme whenever they are read."""

    def __init__(self, rows: Sequence[dict], scheme: str):
        self.rows, self.scheme = rows, scheme

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self._converted(self.rows[index])

    def __iter__(self) -> Iterator[dict]:
        return map(self._converted, self.rows)

    def _converted(self, row: dict) -> dict:
        tags, _ = to_bio(row["tags"], self.scheme)
        return {**row, "tags": tags}

    @property
    def fingerprint(self) -> str | None:
        """A name of these rows, or None."""
        source = getattr(self.rows, "fingerprint", None)
        return source and fingerprint(source, self.scheme)


def in_bio(
    train: Sequence[dict], evaluation: Sequence[dict]
) -> tuple[RowsInBio, RowsInBio, str, int]:
    """Both sets of rows in BIO, the scheme they were written in, and how many of their tags break it."""
    scheme = find_scheme(row["tags"] for row in chain(train, evaluation))
    # Only counted here: the rows are converted whenever they are read.
    broken = 0
    for row in chain(train, evaluation):
        broken += to_bio(row["tags"], scheme)[1]
    return RowsInBio(train, scheme), RowsInBio(evaluation, scheme), scheme, broken


def type_counts(rows: Iterable[dict]) -> Counter:
    """The number of entities of each type in rows in BIO."""
    counts = Counter()
    for row in rows:
        counts.update(kind for kind, _, _ in entities(row["tags"]))
    return counts


def tag_names(rows: Sequence[dict]) -> list[str]:
    """The labels of a model for training rows in BIO: O, then B-x and I-x of each type in alphabetical order."""
    kinds = sorted(type_counts(rows))
    if not kinds:
        raise UserError(
            f"none of the {len(rows)} training rows has an entity (all tags are O): there is nothing to learn"
        )
    labels = [OUTSIDE]
    for kind in kinds:
        labels += [f"B-{kind}", f"I-{kind}"]
    return labels


def check_types(rows: Sequence[dict], labels: Sequence[str]) -> None:
    """UserError where evaluation rows have a type of entity that no training row has."""
    known = {label[2:] for label in labels[1:]}  # the first label is O
    counts = type_counts(rows)
    unknown = sorted(counts.keys() - known)
    if not unknown:
        return
    described = []
    for kind in unknown[:TYPES_SHOWN]:
        numbered = enumerate(rows, start=1)
        first = next(number for number, row in numbered if f"B-{kind}" in row["tags"])
        described.append(f"{kind!r} ({counts[kind]}, first in row {first})")
    raise UserError(
        f"no training row has an entity of the type {', '.join(described)} of the evaluation rows. Types of the "
        f"training rows: {', '.join(sorted(known))}. Add training rows with it, remove it from the evaluation rows, or, "
        "where one file is split, use another seed or eval_fraction"
    )


def check_held_out(rows: Sequence[dict], labels: Sequence[str]) -> None:
    """UserError where the evaluation rows have a type that no training row has, or no entity at all."""
    check_types(rows, labels)
    for row in rows:
        if any(tag != OUTSIDE for tag in row["tags"]):
            return
    raise UserError(
        f"none of the {len(rows)} evaluation rows has an entity to find: raise eval_fraction or add rows"
    )


def warnings_of(
    train: Sequence[dict],
    evaluation: Sequence[dict],
    scheme: str,
    broken: int,
) -> list[str]:
    """Warnings about rows in BIO before training on them, each with a count."""
    warnings = []
    if broken:
        warnings.append(
            f"{broken} tags break {scheme}; each is read as a new entity, or as the end of one"
        )
    counts = type_counts(train)
    single = sorted(kind for kind, count in counts.items() if count == 1)
    if single:
        warnings.append(
            f"{len(single)} types have a single entity to learn from: {', '.join(single)}"
        )
    not_evaluated = sorted(counts.keys() - type_counts(evaluation).keys())
    if not_evaluated:
        warnings.append(
            f"{len(not_evaluated)} types are in no evaluation row and not evaluated: {', '.join(not_evaluated)}"
        )
    return warnings


# ---- units and text ----------------------------------------------------------------------------------------------


def find_units(rows: Iterable[dict]) -> str:
    """ "characters" where (nearly) every token of the rows is one, else "words"."""
    is_character: Counter[bool] = Counter()
    for row in rows:
        is_character.update(len(token) == 1 for token in row["tokens"])
    if is_character[True] >= CHARACTERS * is_character.total():
        return "characters"
    return "words"


def find_joints(rows: Iterable[dict]) -> tuple[str, str]:
    """The signs that occur inside words of the rows ("-" of "well-known"), and in front of them ("@" of "@ada").

    Each data set splits its words in its own way, 12:30 or 12 : 30, and a new text must be split like the data. A sign
    counts if it occurs in a word at least once per JOINT_RATIO times that it is a token of its own.
    """
    alone: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    in_front: Counter[str] = Counter()
    for row in rows:
        for token in row["tokens"]:
            if re.fullmatch(URL, token):
                continue
            if len(token) == 1:
                alone[token] += 1
            inside.update(re.findall(r"(?<=\w)[^\w\s](?=\w)", token))
            in_front.update(re.findall(r"^[^\w\s](?=\w)", token))
    return _frequent_signs(inside, alone), _frequent_signs(in_front, alone)


def _frequent_signs(joining: Counter[str], alone: Counter[str]) -> str:
    signs = [sign for sign, count in joining.items() if count * JOINT_RATIO >= alone[sign]]
    return "".join(sorted(signs))


def join(tokens: Sequence[str], units: str) -> tuple[str, list[int]]:
    """The text of a row, and the character at which each of its units begins."""
    glue = "" if units == "characters" else " "
    ends = accumulate(len(token) + len(glue) for token in tokens)
    starts = [0, *ends][: len(tokens)]
    return glue.join(tokens), starts


# ---- tokens ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenWindow:
    """Tokens of the text of row `row`, or of a part of it.

    heads: (token, unit, last unit) for each unit with a token of its own: the index of its first token, the unit, and the
    last unit that its tokens reach into.
    """

    row: int
    inputs: dict[str, list[int]]
    heads: list[tuple[int, int, int]]


class _Span(NamedTuple):
    """Tokens start to stop (exclusive) of a text, and the part of them that no other window decides."""

    start: int
    stop: int
    first_decided: int
    stop_decided: int


def cut_windows(
    tokenizer,
    rows: Sequence[dict],
    *,
    units: str,
    max_length: int,
) -> list[TokenWindow]:
    """Rows of tokens -> windows of at most max_length token ids. No text can spell a special token.

    A longer text is split into windows that overlap. A unit's tag is decided in the window where the unit is closer to the
    middle.
    """
    return list(token_windows(tokenizer, rows, units=units, max_length=max_length))


def token_windows(
    tokenizer, rows: Iterable[dict], *, units: str, max_length: int
) -> Iterator[TokenWindow]:
    """Yields what `cut_windows` gives."""
    if not tokenizer.is_fast:
        raise UserError(
            "tags need a tokenizer that knows where its tokens are in the text: use a fast one"
        )
    before, after = _special_ids(tokenizer)
    room = max_length - len(before) - len(after)
    if room < 1:
        raise UserError(
            f"max_length={max_length} leaves no room for a text: raise it, up to the model's context"
        )
    for row_index, row in enumerate(rows):
        text, starts = join(row["tokens"], units)
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids = encoded["input_ids"]
        heads = _heads(text, starts, encoded["offset_mapping"])
        # In order, so that the heads of a window are a slice: a row may be a whole book.
        tokens = [token for token, _, _ in heads]
        for span in _spans(len(ids), room):
            window_ids = [*before, *ids[span.start : span.stop], *after]
            shift = len(before) - span.start  # from a token of the text to one of the window
            first = bisect_left(tokens, span.first_decided)
            stop = bisect_left(tokens, span.stop_decided)
            window_heads = [(token + shift, unit, last) for token, unit, last in heads[first:stop]]
            inputs = _model_inputs(tokenizer, window_ids)
            yield TokenWindow(row_index, inputs, window_heads)


def _special_ids(tokenizer) -> tuple[list[int], list[int]]:
    """The ids of the special tokens that go before and after a text."""
    # They are the same around every text.
    example = tokenizer("a", return_special_tokens_mask=True)
    ids, is_special = example["input_ids"], example["special_tokens_mask"]
    text_positions = [i for i, special in enumerate(is_special) if not special]
    return ids[: text_positions[0]], ids[text_positions[-1] + 1 :]


def _model_inputs(tokenizer, ids: list[int]) -> dict[str, list[int]]:
    """The columns that the model takes: of one text, all attended to, all of segment 0."""
    inputs = {"input_ids": ids}
    for name in tokenizer.model_input_names[1:]:
        inputs[name] = [int(name == "attention_mask")] * len(ids)
    return inputs


def _heads(
    text: str, starts: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """(first token, unit, last unit that its tokens reach into) of each unit in which a token begins.

    starts: the first character of each unit. offsets: the characters of each token.
    """
    first_token: dict[int, int] = {}
    last_unit: dict[int, int] = {}
    for token, (start, end) in enumerate(offsets):
        # A token of GPT-2 begins with the space in front of its word.
        while start < end - 1 and text[start].isspace():
            start += 1
        if start < end:
            unit = bisect_right(starts, start) - 1
            first_token.setdefault(unit, token)
            last_unit[unit] = bisect_right(starts, end - 1) - 1
    return [(token, unit, last_unit[unit]) for unit, token in first_token.items()]


def _spans(length: int, room: int) -> list[_Span]:
    """The windows of a text of `length` tokens, `room` tokens each; each token is decided by exactly one of them."""
    if length <= room:
        return [_Span(0, length, 0, length)]
    step = room - room // OVERLAP
    # The last window ends with the text, so that it is as long as the others.
    starts = [*range(0, length - room, step), length - room]
    # Two windows share the overlap in the middle: from the later start to the earlier stop.
    borders = [(later + start + room) // 2 for start, later in pairwise(starts)]
    decided = pairwise([0, *borders, length])
    return [_Span(start, start + room, *part) for start, part in zip(starts, decided)]


def stored_windows(
    tokenizer, rows: Sequence[dict], *, labels: Sequence[str], units: str, max_length: int
) -> EncodedRows:
    """The windows of rows in BIO as rows to train on, encoded once for all processes and runs, and mapped from the cache.

    Each has the inputs of the model; labels: the number of a unit's tag at its first token, IGNORED everywhere else; heads
    as of a TokenWindow; and in_row, the index of its row.
    """
    columns = input_columns(tokenizer) | {"labels": NUMBERS, "heads": LISTS, "in_row": NUMBER}
    settings = {"labels": labels, "units": units, "max_length": max_length}
    return encode_once(labelled_windows, tokenizer, rows, columns, **settings)


def labelled_windows(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, labels: Sequence[str], **settings
) -> Iterator[dict]:
    """Yields what `stored_windows` describes. settings: of `cut_windows`."""
    number_of = {label: i for i, label in enumerate(labels)}
    for window in token_windows(tokenizer, rows, **settings):
        tags = rows[window.row]["tags"]
        numbers = [IGNORED] * len(window.inputs["input_ids"])
        for token, unit, _ in window.heads:
            numbers[token] = number_of[tags[unit]]
        yield {**window.inputs, "labels": numbers, "heads": window.heads, "in_row": window.row}


def to_train_on(encoded: EncodedRows) -> EncodedRows:
    """The columns of stored windows that the model takes."""
    return encoded.without("heads", "in_row")


def windows_of(encoded: EncodedRows) -> Sequence[TokenWindow]:
    """Stored windows as windows without inputs."""
    return Converted(
        lambda entry: TokenWindow(entry["in_row"], {}, entry["heads"]),
        encoded.only("in_row", "heads"),
    )


def decode_windows(
    windows: Iterable[TokenWindow], marks: Iterable[Sequence[str]], rows: Sequence[dict]
) -> list[list[str]]:
    """Legal BIO tags of every unit of every row, from the tags at the heads of its windows.

    Units that a token reaches into continue its entity. Units without a token (mostly white space) are inside where the
    entity continues behind them. An I-x that continues nothing begins an entity, as conlleval reads it.
    """
    rows_tags: list[list[str | None]] = [[None] * len(row["tokens"]) for row in rows]
    for window, window_marks in zip(windows, marks, strict=True):
        tags = rows_tags[window.row]
        for (_, unit, last), tag in zip(window.heads, window_marks, strict=True):
            tags[unit] = tag
            for reached in range(unit + 1, last + 1):
                tags[reached] = _continued(tag)
    decoded = []
    for tags in rows_tags:
        # The repairs are the model's mistakes, not the data's: nobody counts them.
        legal, _ = to_bio(_filled(tags), "BIO")
        decoded.append(legal)
    return decoded


def _continued(tag: str) -> str:
    """The tag of the next unit if the entity of this one continues."""
    if tag == OUTSIDE:
        return OUTSIDE
    return f"I-{tag[2:]}"


def _filled(tags: list[str | None]) -> list[str]:
    """Tags in which a unit without one continues the entity before it, if the next known tag does so too."""
    # next_tags[i]: the first known tag at i or after it
    next_tags = [*tags, OUTSIDE]
    for i in reversed(range(len(tags))):
        if tags[i] is None:
            next_tags[i] = next_tags[i + 1]
    filled: list[str] = []
    continued = OUTSIDE
    for tag, next_tag in zip(tags, next_tags):
        if tag:
            filled.append(tag)
        elif next_tag == continued:
            filled.append(continued)
        else:
            filled.append(OUTSIDE)
        continued = _continued(filled[-1])
    return filled


def out_of_reach(windows: Sequence[TokenWindow], rows: Sequence[dict]) -> int:
    """The number of entities that even a perfect model cannot mark, because one of their ends is inside a token."""
    perfect_marks = []
    for window in windows:
        tags = rows[window.row]["tags"]
        perfect_marks.append([tags[unit] for _, unit, _ in window.heads])
    count = 0
    for row, best_tags in zip(rows, decode_windows(windows, perfect_marks, rows), strict=True):
        count += len(set(entities(row["tags"])) - set(entities(best_tags)))
    return count


def tags_of_windows(
    windows: Sequence[TokenWindow],
    numbers: Iterable,
    labels: Sequence[str],
) -> list[list[str]]:
    """The predicted tag of each unit of each window. numbers: (windows, L), those of the labels of its tokens."""
    tags = []
    for predicted, window in zip(numbers, windows):
        tags.append([labels[predicted[token]] for token, _, _ in window.heads])
    return tags
