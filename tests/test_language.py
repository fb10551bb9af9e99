"""Plain English in code, recipes and pages: what a reader of this project should not have to read twice.

Prose is the comments, docstrings and texts of a Python file, the comments of a YAML or shell file, and a page without its
code. A text without a space is an identifier, and `quoted` words are names: neither is checked.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = [*sorted((ROOT / "rlhf").rglob("*.py")), *sorted((ROOT / "recipes").rglob("*.py"))]
CODE += [ROOT / "app.py", ROOT / "benchmarks" / "readme.py", ROOT / "benchmarks" / "record.py"]
SETTINGS = [*sorted((ROOT / "recipes").rglob("*.yaml")), ROOT / "recipes" / "demo.sh"]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "recipes" / "README.md", ROOT / "benchmarks" / "LOG.md"]

# A pattern, and what a native speaker writes instead.
PHRASES = {
    r"beside": "next to, compared with",
    r"in place of": "instead of",
    r"mend(s|ed|ing)?": "fix",
    r"(leaves?|leaving|left) (\w+ )?out": "drop, skip, omit, exclude",
    r"turn(s|ed|ing)? (\w+ ){0,2}round": "swap",
    r"anew": "again",
    r"one's (own|text|data)": "your",
    r"(?<!there )is no (?!longer|more|less|other|need)\w+": "is not a",
    r"the house": "the project",
    r"house rule": "default",
    r"judg(e|es|ed|ing)": "evaluate, score",
    r"stands?(?! for\b)|stood": "is",
    r"bears?|borne": "has",
    r"hangs? (in|into|on|over|together|from|it)|hung": "attach, depend",
    r"(lie|lies|lay) (in|on|at|between|behind|below|above|outside|within|there)": "is",
    r"parted|parts (at|from)": "split, separated",
    r"go(es)? on with": "continue",
    r"upon": "on",
    r"whilst|amidst|thereof|wherein|therein": "while, in",
    r"kin": "relatives",
    r"sought": "searched",
    r"the whole (road|way)|road (to|from)": "every stage",
    r"taggers?": "ner model",
    r"(?<!we )(?<!I )(leaves|left) with (\d|an? exit)": "exits with",
    r"look(s|ed|ing)? at (it|them|completions|rows) with": "run ... on",
    r"forms? of rows": "row formats",
    r"by turns": "alternately",
    r"a little (?!less|more|later|earlier|longer|shorter|over|under)\w+er": "slightly",
    r"said of": "told about",
    r"PPO\.md": "docs/invariants.md",
}
# Uses that are right: a file and the matched text.
ALLOWED: set[tuple[str, str]] = set()
RELATIVE = r"(What|Whether|How|Which|Where|When|Who|Whose)\b"
SEMICOLONS = 0.1  # per sentence of a page
WORDS = 40  # in a sentence of a page


def prose(path: Path) -> list[str]:
    """The pieces of a file that are written for people, each on one line."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        pieces = python_prose(source)
    elif path.suffix == ".md":
        pieces = markdown_prose(source)
    else:
        pieces = re.findall(r"(?:^|\s)#(?!!) ?(.*)", source)
        pieces = [" ".join(pieces)]
    pieces = [re.sub(r"`[^`]*`", "`", piece) for piece in pieces]
    return [re.sub(r"\s+", " ", piece).strip() for piece in pieces]


def python_prose(source: str) -> list[str]:
    """Comments, docstrings and texts. Comments of neighbouring lines are one piece."""
    text = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    pieces, last = [], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("#! ")
            if token.start[0] == last + 1:
                pieces[-1] += " " + words
            else:
                pieces.append(words)
            last = token.start[0]
        elif token.type in text and re.search(r"\s", token.string.strip()):
            pieces.append(token.string.strip("frbFRB\"'"))
    return pieces


def markdown_prose(source: str) -> list[str]:
    """Paragraphs, list items and table cells, without code, comments and links' addresses."""
    source = re.sub(r"^ *```.*?^ *```", "", source, flags=re.S | re.M)
    source = re.sub(r"<!--.*?-->", "", source, flags=re.S)
    source = re.sub(r"\]\([^)]*\)", "]", source)
    pieces = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\.) ?)", source):
        cells = block.split("|") if block.lstrip().startswith("|") else [block]
        pieces += [cell for cell in cells if re.search(r"\w", cell)]
    return pieces


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def of_files(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=name_of)


def unwanted(text: str) -> list[str]:
    """Every phrase of the list in a text, with its neighbours and what to write instead."""
    hits = []
    for pattern, instead in PHRASES.items():
        for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", text, flags=re.I):
            around = text[max(match.start() - 30, 0) : match.end() + 20]
            hits.append(f"{match.group(0)!r} -> {instead}: ...{around}...")
    return hits


@of_files([*CODE, *SETTINGS, *PAGES])
def test_a_file_is_in_plain_english(path):
    hits = [hit for piece in prose(path) for hit in unwanted(piece)]
    allowed = [text for name, text in ALLOWED if name == name_of(path)]
    assert [hit for hit in hits if not any(text in hit for text in allowed)] == []


@of_files(CODE)
def test_a_docstring_opens_with_a_verb_or_a_noun(path):
    relative = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node) or ""
            if re.match(RELATIVE, docstring):
                relative.append(docstring.splitlines()[0])
    assert relative == []


@of_files(CODE)
def test_an_index_is_called_index_and_a_result_by_what_it_is(path):
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.id, node.lineno))
        if isinstance(node, ast.arg):
            names.append((node.arg, node.lineno))
    lines = [f"{name} in line {line}" for name, line in names if name in ("place", "found")]
    assert lines == [], "call it i or index; results, metrics, rows or what it is"


@of_files(PAGES)
def test_a_page_has_full_stops_and_few_semicolons(path):
    pieces = prose(path)
    sentences = sum(max(1, len(re.findall(r"[.!?](?=\s|$|\))", piece))) for piece in pieces)
    semicolons = sum(piece.count(";") for piece in pieces)
    assert semicolons <= SEMICOLONS * sentences, f"{semicolons} in {sentences} sentences"


@of_files(PAGES)
def test_a_sentence_of_a_page_is_short(path):
    sentences = [text for piece in prose(path) for text in re.split(r"(?<=[.!?:]) ", piece)]
    assert [text for text in sentences if len(text.split()) > WORDS] == []


@pytest.mark.parametrize(
    "text",
    [
        "numbers beside the list",
        "mend them, or leave them out",
        "did you turn the two round?",
        "This is no classifier",
        "judged on held-out rows",
        "the text stands in the row",
        "one's own data",
    ],
)
def test_what_is_on_the_list_is_noticed(text):
    assert unwanted(text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no label",
        "no longer: it is no longer read",
        "the leave-one-out baseline",
        "standard deviation, understands, outstanding",
        "recommends",
        "EOS stands for end of sequence",
    ],
)
def test_what_is_right_is_not_noticed(text):
    assert unwanted(text) == []


def test_identifiers_code_and_quoted_names_are_no_prose():
    source = '"""Sum `beside` it."""\nkey = "judged"  # a comment\n# that goes on\nbeside = 1\n'
    assert [" ".join(piece.split()) for piece in python_prose(source)] == [
        "Sum `beside` it.",
        "a comment that goes on",
    ]
    page = "A [link](beside.md)\n\n```\nbeside\n```\n| a cell | `b` |\n- an item"
    assert markdown_prose(page) == ["A [link]", " a cell ", " `b` ", "- an item"]
