"""Reads local files as rows, together with the number of the line on which each row begins.

The file loader of `datasets` is not used. It silently accepts mixed types, missing columns and NUL characters, and it
finds a byte that is not UTF-8 only in the middle of training. All files are read as a stream. A line, or an item of a
JSON array, that is longer than LONGEST_LINE is refused before it is in memory.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

from rlhf.data.folders import dead_link, is_dead_link
from rlhf.errors import UserError

LONGEST_LINE = 1 << 27  # bytes: 128 MiB, more text than any document has
LONGEST_COUNTED = 1 << 31  # bytes of a line that are counted for its message
BLOCK = 1 << 20  # bytes that are read at once where lines do not matter
DEEPEST = 100  # lists and objects inside each other: Python's own limit is met by what reads the row later
csv.field_size_limit(LONGEST_LINE)  # Python's default, 128 KiB, is less than one long document

BLANK = "blank"  # as a separator: an empty line


class BrokenLine(str):
    """The reason why a line could not be read. It is yielded instead of the line's row."""


def read_rows(path: Path, separator: str | None = None) -> Iterator[tuple[int, dict | BrokenLine]]:
    """Yields (line number, row), or (line number, BrokenLine) so that the caller decides whether to go on.

    separator: the line between two texts of a .txt file, see `_read_documents`. With None each line is a text.
    """
    read = _reader(path, separator)
    empty = True
    # gzip finds damage only while it reads, so the errors come from within the loop.
    try:
        for item in read(path):
            empty = False
            yield item
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: damaged or truncated gzip file ({error}): fetch or pack it again"
        ) from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}): check its permissions and the disk"
        ) from error
    if empty:
        size = path.stat().st_size
        raise UserError(
            f"{path}: no rows ({size} bytes): the file is empty; give a file with at least one row"
        )


def _reader(path: Path, separator: str | None) -> Callable:
    """The function that reads this type of file. UserError for a missing file or an unknown type."""
    if path.exists() and not path.is_file():
        raise UserError(
            f"{path}: not a regular file, but a device, a pipe or a folder: save the rows in a file, as rows.jsonl"
        )
    if is_dead_link(path):
        raise UserError(f"{path}: {dead_link(path)}")
    if not path.is_file():
        siblings = [sibling.name for sibling in path.parent.glob("*")]
        nearest = get_close_matches(path.name, siblings, n=1)
        if nearest:
            raise UserError(f"{path}: no such file; did you mean {nearest[0]}?")
        raise UserError(f"{path}: no such file; check the path")
    ending = suffix(path)
    if ending not in READERS:
        raise UserError(
            f"{path}: unknown file type {ending!r}; allowed: {', '.join(READERS)}, each also with .gz"
        )
    if separator is not None and ending == ".txt":
        return partial(_read_documents, separator=separator)
    return READERS[ending]


def check_file(path: Path) -> None:
    """UserError for a missing file, or one of a type that cannot be read. Nothing is read yet."""
    _reader(path, None)


def suffix(path: Path) -> str:
    """The ending that names the type of a file, in lower case and without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


# ---- lines ----------------------------------------------------------------------------------------------------------


def _open(path: Path):
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # unpacks while it is read
    return open(path, "rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text with its line end). A line that is not UTF-8 is a BrokenLine."""
    with _open(path) as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                size = len(line) + _skip_line(path, number, file)
                yield number, BrokenLine(_too_long(size))
                continue
            if number == 1:  # Excel and Windows editors write a byte order mark
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, _decode(line)


def _skip_line(path: Path, number: int, file) -> int:
    """Reads to the end of a line without keeping it, and returns the number of bytes."""
    size = 0
    part = b" "
    while part and not part.endswith(b"\n"):
        part = file.readline(BLOCK)
        size += len(part)
        # A few bytes of gzip can hold a line without end.
        if size > LONGEST_COUNTED:
            raise UserError(f"{path}:{number}: {_too_long(LONGEST_COUNTED)}")
    return size


def _too_long(size: int) -> str:
    more = ""
    if size >= LONGEST_COUNTED:
        more = "more than "
    return f"a line of {more}{size:,} bytes; allowed: {LONGEST_LINE:,}: write JSON lines with one row in each"


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # Without a line end in front of it, rfind gives -1 and the column still counts from 1.
        column = error.start - data.rfind(b"\n", 0, error.start)
        return BrokenLine(
            f"not UTF-8 (byte 0x{data[error.start]:02x} at column {column}): save the file as UTF-8"
        )


# ---- text -----------------------------------------------------------------------------------------------------------


def _read_text(path: Path):
    """One text per line. Empty lines are skipped."""
    if looks_like_conll(path):
        yield from _read_conll(path)
        return
    for number, line in _lines(path):
        if isinstance(line, BrokenLine):
            yield number, line
        elif line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _read_documents(path: Path, separator: str):
    """Texts of several lines. A line that holds only `separator` ends a text. BLANK means an empty line."""
    separator_line = separator
    if separator == BLANK:
        separator_line = ""
    lines: list[str] = []  # of the document that is being read
    start = 0  # line number of its first line
    separators = 0
    for number, line in _lines(path):
        if isinstance(line, BrokenLine):
            yield number, line
        elif line.strip() == separator_line:
            separators += 1
            if lines:
                yield start, _document(lines)
            lines = []
        elif lines:
            lines.append(line.rstrip("\r\n"))
        elif line.strip():
            start = number
            lines = [line.rstrip("\r\n")]
    if not separators:
        missing = f"line {separator!r}"
        if separator == BLANK:
            missing = "empty line"
        raise UserError(
            f"{path}: document_separator: the file has no {missing}, so it would be one document"
        )
    if lines:
        yield start, _document(lines)


def _document(lines: list[str]) -> dict:
    return {"text": "\n".join(lines).rstrip()}


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _read_json(path: Path):
    """JSON lines, one array, or {"data": [...]}. The first line with text decides, not the ending."""
    # Many data sets name an array .jsonl, or JSON lines .json.
    sign = _first_sign(path)
    if not sign:
        return iter(())
    if sign == b"[":
        return _read_json_array(path)
    if suffix(path) == ".json":
        texts = (line for _, line in _lines(path) if line.strip())
        opening = _parse_object(next(texts, ""), _Decoder())
        # A line that is not an object by itself opens one that runs over several lines.
        if isinstance(opening, BrokenLine) or isinstance(opening.get("data"), list):
            return _read_json_array(path)
    return _read_json_lines(path)


def _first_sign(path: Path) -> bytes:
    """The first byte that is not white space; b"" for a file without any."""
    with _open(path) as file:
        block = file.read(BLOCK).removeprefix(codecs.BOM_UTF8)
        while block and not block.strip():
            block = file.read(BLOCK)
    return block.strip()[:1]


def _read_json_lines(path: Path):
    decoder = _Decoder()
    for number, line in _lines(path):
        if isinstance(line, BrokenLine):
            yield number, line
        elif not line.isspace():
            yield number, _parse_object(line, decoder)


class _Decoder(json.JSONDecoder):
    """A decoder that notices a key which is twice in an object. Python's own keeps the last value without a word."""

    def __init__(self):
        super().__init__(object_pairs_hook=self._make_object)
        self.repeated = ""  # such a key

    def _make_object(self, pairs: list[tuple]) -> dict:
        values = dict(pairs)
        if len(values) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated = counts.most_common(1)[0][0]
        return values

    def problem(self) -> BrokenLine | None:
        """The reason why the objects that were decoded since the last call are bad, or None."""
        key, self.repeated = self.repeated, ""
        if not key:
            return None
        return BrokenLine(f"the key {key!r} is twice in one object: remove one of them")


def _parse_object(line: str, decoder: _Decoder) -> dict | BrokenLine:
    if isinstance(line, BrokenLine):
        return line
    decoder.problem()  # of a line that was not whole
    try:
        row = decoder.decode(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        return BrokenLine(
            f"not valid JSON ({error.msg}, column {error.colno}): the line is cut off or damaged"
        )
    except (ValueError, RecursionError) as error:  # a number of too many digits, deep nesting
        return BrokenLine(f"not valid JSON ({error})")
    problem = decoder.problem()
    if not isinstance(row, dict):
        return BrokenLine(f"an object {{...}} is expected, {line.strip():.60} given")
    if not problem and line.count("{") + line.count("[") > DEEPEST:
        problem = _depth_problem(row)
    return problem or row


def _depth_problem(row: dict) -> BrokenLine | None:
    """The reason why a row is nested too deeply, or None."""
    level = [row]  # the lists and objects that are equally deep
    for _ in range(DEEPEST):
        below = []
        for value in level:
            items = value.values() if isinstance(value, dict) else value
            below += [item for item in items if isinstance(item, list | dict)]
        level = below
        if not level:
            return None
    return BrokenLine(f"more than {DEEPEST} lists and objects inside each other: give flat columns")


class _JSONText:
    """A JSON text that is decoded value by value while it is read, so that the line of each value is known.

    blocks: the text in parts, which may end anywhere.
    """

    def __init__(self, blocks: Iterator[str]):
        self.blocks = blocks
        self.text = ""  # what was read and is not dropped yet
        self.index = 0  # of the next character to read
        self.counted = 0  # the line and the column of this character are known
        self.line = 1
        self.column = 1
        self.may_be_deep = False  # the last value, from its brackets
        self.decoder = _Decoder()

    def locate(self, index: int) -> None:
        """Sets `line` and `column` to those of a character at or behind the last one."""
        lines = self.text.count("\n", self.counted, index)
        self.line += lines
        if lines:
            self.column = index - self.text.rfind("\n", 0, index)
        else:
            self.column += index - self.counted
        self.counted = index

    def fail(self, reason: str, index: int) -> None:
        self.locate(index)
        raise _BrokenArray(f"{reason}, column {self.column}")

    def grow(self) -> bool:
        """Reads on, and drops what was taken. False at the end of the file."""
        self.locate(self.index)
        parts = [self.text[self.index :]]
        if len(parts[0]) > LONGEST_LINE:
            self.fail(f"an item of more than {LONGEST_LINE:,} characters", self.index)
        # As much again as is there, since a value that is not whole is decoded again.
        wanted = len(parts[0])
        length = 0
        for block in self.blocks:
            parts.append(block)
            length += len(block)
            if length >= wanted:
                break
        self.text = "".join(parts)
        self.index = self.counted = 0
        return length > 0

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end of the text."""
        while True:
            while self.text[self.index : self.index + 1].isspace():
                self.index += 1
            if self.index < len(self.text) or not self.grow():
                return self.text[self.index : self.index + 1]

    def take(self, *signs: str) -> str:
        """Moves past one of the given signs and returns it."""
        sign = self.peek()
        if sign not in signs:
            expected = " or ".join(signs)
            self.fail(f"{expected} expected", self.index)
        self.index += 1
        return sign

    def value(self):
        """Moves past a value and returns it."""
        self.peek()
        while True:
            start, repeated = self.index, self.decoder.repeated
            try:
                value, stop = self.decoder.raw_decode(self.text, start)
                is_whole, reason = stop < len(self.text), ""
            except json.JSONDecodeError as error:
                is_whole, reason, stop = False, error.msg, error.pos
            except (ValueError, RecursionError) as error:  # too many digits, deep nesting
                self.fail(str(error), start)
            if is_whole:
                break
            # An object may only not be there as a whole, and a number may go on.
            if self.grow():
                self.decoder.repeated = repeated
                continue
            start, stop = 0, stop - start
            if reason:
                self.fail(reason, stop)
            break
        self.index = stop
        brackets = self.text.count("{", start, stop) + self.text.count("[", start, stop)
        self.may_be_deep = brackets > DEEPEST
        return value


class _BrokenArray(Exception):
    """The reason why a text is not the JSON that is expected, with the column. The line is the text's."""


def _blocks(path: Path) -> Iterator[str]:
    """The text of a file in parts. UserError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _open(path) as file:
        block = file.read(BLOCK).removeprefix(codecs.BOM_UTF8)
        while block:
            following = file.read(BLOCK)
            try:
                yield decoder.decode(block, final=not following)
            except UnicodeDecodeError as error:
                raise _not_utf8(path) from error
            block = following


def _not_utf8(path: Path) -> UserError:
    for number, line in _lines(path):
        if isinstance(line, BrokenLine):
            return UserError(f"{path}:{number}: {line}")
    return UserError(f"{path}: not UTF-8: save the file as UTF-8")


def _read_json_array(path: Path):
    text = _JSONText(_blocks(path))
    try:
        yield from _array_rows(text)
    except _BrokenArray as error:
        raise UserError(
            f"{path}:{text.line}: not valid JSON ({error}): cut off, damaged, or of another form; allowed: JSON lines, "
            'one array of objects, or {"data": [...]}'
        ) from error


def _array_rows(text: _JSONText):
    """(line number, row) of the objects of the text's array, which may be the value of the key "data"."""
    is_wrapped = text.peek() == "{"
    if is_wrapped:
        text.take("{")
        # SQuAD's files have a "version" next to "data". Values of other keys are skipped.
        while text.value() != "data":
            text.take(":")
            text.value()
            text.take(",")
        text.take(":")
    text.take("[")
    text.decoder.problem()  # of the values that were skipped
    while text.peek() != "]":
        text.locate(text.index)
        line = text.line
        row = text.value()
        problem = text.decoder.problem()
        if not problem and text.may_be_deep and isinstance(row, dict):
            problem = _depth_problem(row)
        if problem:
            yield line, problem
        elif isinstance(row, dict):
            yield line, row
        else:
            yield line, BrokenLine(f"an object is expected, {row!r:.60} given")
        if text.peek() != "]":
            text.take(",", "]")
    text.take("]")
    if is_wrapped:
        while text.take(",", "}") == ",":
            text.value()
            text.take(":")
            text.value()
    if text.peek():
        # A second array would be lost.
        text.fail("end of the file expected", text.index)


# ---- tables ---------------------------------------------------------------------------------------------------------


class _TableLines:
    """The lines that the csv reader gets. It cannot take broken ones, which are kept in `broken`."""

    def __init__(self, path: Path):
        self.path = path
        self.number = (
            0  # of the line that the reader took last: a quoted field may run over several
        )
        self.broken: list[tuple[int, BrokenLine]] = []

    def __iter__(self) -> Iterator[str]:
        for number, line in _lines(self.path):
            self.number = number
            if isinstance(line, BrokenLine):
                self.broken.append((number, line))
            else:
                yield line


def _read_table(path: Path, **dialect):
    lines = _TableLines(path)
    reader = csv.reader(lines, strict=True, **dialect)
    header = _read_header(path, reader, lines)
    while True:
        start = lines.number + 1  # a row is named by its first line
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields = BrokenLine(
                f"not a valid row ({error}): is a quote opened here and never closed?"
            )
        yield from lines.broken
        lines.broken.clear()
        if fields is None:
            return
        if isinstance(fields, BrokenLine):
            yield start, fields
        elif fields and len(fields) != len(header):
            reason = f"{len(fields)} fields, but the header has {len(header)}: {', '.join(header)}"
            yield start, BrokenLine(reason)
        elif fields:  # an empty line has none
            yield start, dict(zip(header, fields, strict=True))


def _read_header(path: Path, reader, lines: _TableLines) -> list[str]:
    """The names of the columns. A column without a name is called by its number."""
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise UserError(
            f"{path}:1: not a valid header ({error}): end lines with \\n and close every quote"
        ) from error
    if lines.broken:
        number, reason = lines.broken[0]
        raise UserError(f"{path}:{number}: {reason}")
    header = [name.strip() or f"column {number}" for number, name in enumerate(names, start=1)]
    for name, times in Counter(header).items():
        if times > 1:
            raise UserError(
                f"{path}:1: {name}: the header names this column twice: give each column its own name"
            )
    return header


def _read_csv(path: Path):
    return _read_table(path, delimiter=",")


def _read_tsv(path: Path):
    if looks_like_conll(path):
        return _read_conll(path)
    return _tsv_rows(path)


def _tsv_rows(path: Path):
    """Rows of a table in which a quote is an ordinary character, unless a field is quoted as a CSV writer does it."""
    for number, row in _read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE):
        quoted = None
        if not isinstance(row, BrokenLine):
            quoted = next((name for name, field in row.items() if _is_quoted(field)), None)
        if quoted is None:
            yield number, row
        else:
            reason = (
                f"{quoted}: {row[quoted]!r:.60} is quoted as in a CSV file, so that quotes would be learned: write "
                "a .csv file, or fields without quotes"
            )
            yield number, BrokenLine(reason)


def _is_quoted(field: str) -> bool:
    """True for a field in quotes whose own quotes are all doubled, as in "He said ""hi\""."""
    inner = field[1:-1]
    is_enclosed = len(field) > 3 and field[0] == field[-1] == '"'
    return is_enclosed and '""' in inner and '"' not in inner.replace('""', "")


# ---- CoNLL ----------------------------------------------------------------------------------------------------------

TAG = re.compile(r"O|[BIESLUMW]-\S+")
PROBED_LINES = 100  # token lines that tell a CoNLL file from a table or a text


def looks_like_conll(path: Path) -> bool:
    """Tells from the content of a .txt or .tsv file if it holds tokens with tags.

    The first line must be a token with its tag (a table has column names there), and 90 % of the others.
    """
    probed = islice(_token_columns(path), PROBED_LINES)
    tagged = [len(columns) > 1 and bool(TAG.fullmatch(columns[-1])) for columns in probed]
    return bool(tagged) and tagged[0] and sum(tagged) >= 0.9 * len(tagged)


def _token_columns(path: Path) -> Iterator[list[str]]:
    for _, columns in _conll_lines(path):
        if columns and not isinstance(columns, BrokenLine):
            yield columns


def _conll_lines(path: Path) -> Iterator[tuple[int, list[str] | BrokenLine]]:
    """Yields (line number, columns), where the columns are [] between sentences.

    Comments ("# ...", "## ...") are recognised only between sentences: within one, # is a token.
    """
    inside = False
    for number, line in _lines(path):
        if isinstance(line, BrokenLine):
            columns = line
        else:
            columns = _split_columns(line.rstrip("\r\n\t "), inside)
        inside = bool(columns)
        yield number, columns


def _split_columns(line: str, inside_sentence: bool) -> list[str]:
    if "\t" in line:
        columns = line.split("\t")
    else:
        columns = [part for part in line.split(" ") if part]
    if line.startswith("-DOCSTART-"):
        return []
    if not inside_sentence and re.match("#+ ", line) and not TAG.fullmatch(columns[-1]):
        return []  # a comment
    return columns


def _read_conll(path: Path):
    """One row per sentence, at its first line. A sentence with a bad line is broken, at that line.

    A file of one column has tokens without tags, which are to be predicted.
    """
    start, width = 0, 0  # line of the sentence's first token; columns of the file
    broken: tuple[int, BrokenLine] | None = None
    tokens, tags = [], []
    for number, columns in chain(_conll_lines(path), [(0, [])]):  # an empty line ends the last one
        if not columns:
            if broken:
                yield broken
            elif tokens and width > 1:
                yield start, {"tokens": tokens, "tags": tags}
            elif tokens:
                yield start, {"tokens": tokens}
            start, broken, tokens, tags = 0, None, [], []
            continue
        start = start or number
        # One bad line spoils its sentence: without the token, the tags around it would mean something else.
        problem = _conll_problem(columns, width)
        if problem:
            broken = broken or (number, problem)
            continue
        width = len(columns)
        tokens.append(columns[0])
        tags.append(columns[-1])


def _conll_problem(columns: list[str] | BrokenLine, width: int) -> BrokenLine | None:
    """The reason why the columns are not a token of a file with `width` columns. 0: not known yet."""
    if isinstance(columns, BrokenLine):
        return columns
    if not columns[0]:
        return BrokenLine(f"no token before the tag {columns[-1]}")
    if width in (0, len(columns)):
        return None
    if len(columns) < 2:
        return BrokenLine(f"{columns[0]!r:.60} has no tag: a token and its tag are expected")
    return BrokenLine(f"{len(columns)} columns, but the lines before have {width}")


# ---- parquet, and the table of all types ----------------------------------------------------------------------------


def _read_parquet(path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        with _open(path) as file:
            number = 0
            # Batches keep the memory small: a file can be larger than it.
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a valid parquet file ({reason}): write it again") from error


CONLL_ENDINGS = (".conll", ".iob", ".iob2", ".bio", ".bioes", ".ner", ".annotated")
READERS = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    **dict.fromkeys(CONLL_ENDINGS, _read_conll),
}
