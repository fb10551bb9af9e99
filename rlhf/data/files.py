"""Local files -> rows, with the line each stands on.

datasets' own file loader is not used here: it accepts mixed types, missing columns and NUL silently and meets a byte
that is not UTF-8 only in the middle of training. JSON lines, CSV, TSV, CoNLL, text and parquet are read as a stream; a
JSON array is read whole.
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
from itertools import chain, islice
from pathlib import Path

from rlhf.errors import UserError

csv.field_size_limit(1 << 27)


BLANK = "blank"  # as a separator: an empty line


class Broken(str):
    """Why a line could not be read at all; stands in the place of its row."""


def read_rows(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a local file; the first line that cannot be read raises UserError."""
    for line, row in read_or_broken(Path(path)):
        if isinstance(row, Broken):
            raise UserError(f"{path}:{line}: {row}")
        yield line, row


def read_or_broken(path: Path, separator: str | None = None) -> Iterator[tuple[int, dict | Broken]]:
    """(line number, row or the reason why there is none): the caller decides whether a broken line stops it.

    separator: of the texts of a .txt file, see `_read_documents`; None: each line is a text.
    """
    ending = suffix(path)
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise UserError(
            f"{path}: no such file" + (f"; did you mean {near[0]}?" if near else "; check the path")
        )
    if ending not in READERS:
        raise UserError(
            f"{path}: unknown file type {ending!r}; allowed: {', '.join(READERS)}, each also with .gz"
        )
    read: Callable = READERS[ending]
    if separator is not None and ending == ".txt":
        read = partial(_read_documents, separator=separator)
    empty = True
    try:
        for item in read(path):
            empty = False
            yield item
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: damaged or truncated gzip file ({error}): fetch or pack it again"
        ) from error
    if empty:
        size = path.stat().st_size
        raise UserError(
            f"{path}: no rows ({size} bytes): the file is empty; give a file with at least one row"
        )


def suffix(path: Path) -> str:
    """The ending that names the form of a file; .gz does not count."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _open(path: Path):
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        column = error.start - data.rfind(b"\n", 0, error.start)
        return Broken(
            f"not UTF-8 (byte 0x{data[error.start]:02x} at column {column}): save the file as UTF-8"
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, _decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)


def _read_text(path: Path):
    if looks_like_conll(path):
        yield from _read_conll(path)
        return
    for number, line in _lines(path):
        if isinstance(line, Broken):
            yield number, line
        elif line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _read_documents(path: Path, separator: str):
    """Texts of several lines. Between them stands a line that is `separator` and nothing else; BLANK: an empty one."""
    wanted = "" if separator == BLANK else separator
    lines: list[str] = []
    start, met = 1, False
    for number, line in chain(_lines(path), [(0, wanted)]):  # 0: the end of the file
        if isinstance(line, Broken):
            yield number, line
        elif line.strip() != wanted:
            start = start if lines else number
            if lines or line.strip():
                lines.append(line.rstrip("\r\n"))
        else:
            met |= number > 0
            if not met:
                shown = "empty line" if separator == BLANK else f"line {separator!r}"
                raise UserError(
                    f"{path}: document_separator: the file has no {shown}, so it would be one document"
                )
            if lines:
                yield start, {"text": "\n".join(lines).rstrip()}
            lines = []


def _read_json(path: Path):
    """JSON lines, one array, or {"data": [...]}, whatever the ending says: the first line with text decides."""
    first = next((line for _, line in _lines(path) if line.strip()), "").lstrip()
    if first.startswith("["):
        return _read_json_array(path)
    opened = _object(first)
    if suffix(path) == ".json" and (
        isinstance(opened, Broken) or isinstance(opened.get("data"), list)
    ):
        return _read_json_array(path)
    return _read_json_lines(path)


def _read_json_lines(path: Path):
    for number, line in _lines(path):
        if isinstance(line, Broken):
            yield number, line
        elif line.strip():
            yield number, _object(line)


def _object(line: str) -> dict | Broken:
    try:
        row = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        return Broken(
            f"not valid JSON ({error.msg}, column {error.colno}): the line is cut off or damaged"
        )
    except (ValueError, RecursionError) as error:
        return Broken(f"not valid JSON ({error})")
    return (
        row
        if isinstance(row, dict)
        else Broken(f"an object {{...}} is expected, {line.strip():.60} given")
    )


def _read_json_array(path: Path):
    lines = []
    for number, text in _lines(path):
        if isinstance(text, Broken):
            raise UserError(f"{path}:{number}: {text}")
        lines.append(text)
    text = "".join(lines)
    decoder, line, seen = json.JSONDecoder(), 1, 0

    def skip(place: int) -> int:
        while text[place : place + 1].isspace():
            place += 1
        return place

    def expect(signs: str, place: int) -> int:
        place = skip(place)
        if text[place : place + 1] not in tuple(signs):
            raise json.JSONDecodeError(f"{' or '.join(signs)} expected", text, place)
        return place

    try:
        place = skip(0)
        if text[place] == "{":
            key, place = decoder.raw_decode(text, skip(place + 1))
            while key != "data":
                _, place = decoder.raw_decode(text, skip(expect(":", place) + 1))
                key, place = decoder.raw_decode(text, skip(expect(",", place) + 1))
            place = expect(":", place) + 1
        place = expect("[", place)
        while text[place] != "]":
            place = skip(place + 1)
            if text[place : place + 1] == "]":
                break
            line += text.count("\n", seen, place)
            seen = place
            row, place = decoder.raw_decode(text, place)
            yield (
                line,
                row
                if isinstance(row, dict)
                else Broken(f"an object is expected, {row!r:.60} given"),
            )
            place = expect(",]", place)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno}): cut off, damaged, or of "
            'another form; allowed: JSON lines, one array of objects, or {"data": [...]}'
        ) from error


def _read_table(path: Path, **dialect):
    broken: list[tuple[int, Broken]] = []
    last = 0  # line that the csv reader took last: a quoted field may run over several

    def feed() -> Iterator[str]:
        nonlocal last
        for number, line in _lines(path):
            last = number
            if isinstance(line, Broken):
                broken.append((number, line))
            else:
                yield line

    reader = csv.reader(feed(), strict=True, **dialect)
    try:
        header = [
            name.strip() or f"column {place}"
            for place, name in enumerate(next(reader, []), start=1)
        ]
    except csv.Error as error:
        raise UserError(
            f"{path}:1: not a valid header ({error}): end lines with \\n and close every quote"
        ) from error
    if broken:
        raise UserError(f"{path}:{broken[0][0]}: {broken[0][1]}")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise UserError(
            f"{path}:1: {twice[0]}: the header names this column twice: give each column its own name"
        )
    while True:
        start = last + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields = Broken(f"not a valid row ({error}): is a quote opened here and never closed?")
        yield from broken
        broken.clear()
        if fields is None:
            return
        if isinstance(fields, Broken):
            yield start, fields
        elif fields and len(fields) != len(header):
            yield (
                start,
                Broken(
                    f"{len(fields)} fields, but the header has {len(header)}: {', '.join(header)}"
                ),
            )
        elif fields:
            yield start, dict(zip(header, fields, strict=True))


def _read_csv(path: Path):
    return _read_table(path, delimiter=",")


def _read_tsv(path: Path):
    if looks_like_conll(path):
        return _read_conll(path)
    return _read_table(
        path, delimiter="\t", quoting=csv.QUOTE_NONE
    )  # a quote in a TSV file is only a character


TAG = re.compile(r"O|[BIESLUMW]-\S+")
LOOK = 100  # token lines that tell a CoNLL file from a table or a text


def looks_like_conll(path: Path) -> bool:
    """Whether a .txt or .tsv file holds tokens with tags: the first line (a table has names there), and most others."""
    columns = (c for _, c in _conll_lines(path) if c and not isinstance(c, Broken))
    tagged = [len(c) > 1 and bool(TAG.fullmatch(c[-1])) for c in islice(columns, LOOK)]
    return bool(tagged) and tagged[0] and sum(tagged) >= 0.9 * len(tagged)


def _conll_lines(path: Path) -> Iterator[tuple[int, list[str] | Broken]]:
    """(line number, its columns); [] between sentences. Comments ("# ...", "## ...") stand between sentences only."""
    inside = False
    for number, line in _lines(path):
        if not isinstance(line, Broken):
            line = line.rstrip("\r\n\t ")
            columns = (
                line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
            )
            comment = not inside and re.match("#+ ", line) and not TAG.fullmatch(columns[-1])
            line = [] if comment or line.startswith("-DOCSTART-") else columns
        inside = bool(line)
        yield number, line


def _read_conll(path: Path):
    """One row per sentence, on its first line; a sentence with a bad line is broken, on that line.

    A file of one column has tokens without tags, to be predicted.
    """
    start, width, broken = 0, 0, None
    tokens, tags = [], []
    for number, columns in chain(_conll_lines(path), [(0, [])]):
        if not columns:
            if broken:
                yield broken
            elif tokens:
                yield start, {"tokens": tokens} | ({"tags": tags} if width > 1 else {})
            start, broken, tokens, tags = 0, None, [], []
            continue
        start = start or number
        if isinstance(columns, Broken):
            broken = broken or (number, columns)
        elif not columns[0]:
            broken = broken or (number, Broken(f"no token before the tag {columns[-1]}"))
        elif len(columns) != (width := width or len(columns)):
            lacks = f"{columns[0]!r:.60} has no tag: a token and its tag are expected"
            wider = f"{len(columns)} columns, but the lines before have {width}"
            broken = broken or (number, Broken(lacks if len(columns) < 2 else wider))
        else:
            tokens.append(columns[0])
            tags.append(columns[-1])


def _read_parquet(path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        with _open(path) as file:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1000)
            yield from enumerate(
                chain.from_iterable(batch.to_pylist() for batch in batches), start=1
            )
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: not a valid parquet file ({str(error).splitlines()[0]}): write it again"
        ) from error


READERS = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    **dict.fromkeys(
        (".conll", ".iob", ".iob2", ".bio", ".bioes", ".ner", ".annotated"), _read_conll
    ),
}


def data_files(name: str, split: str | None = None) -> list[Path]:
    """The file itself; of a folder `<split>.jsonl` where it exists, else all its .jsonl files in order."""
    path = Path(name)
    if not path.is_dir():
        return [path]
    if split and (path / f"{split}.jsonl").is_file():
        return [path / f"{split}.jsonl"]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise UserError(
            f"{name}: the folder holds no .jsonl file: give a file, or a folder of .jsonl files"
        )
    return files
