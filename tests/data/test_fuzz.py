"""Whatever a file holds, the loader gives rows or one message: never a traceback.

Examples are drawn from a fixed seed, a few in every run and many more in the slow ones.
"""

import csv
import gzip
import io
import json

import pytest

from rlhf.commands.validate import format_report, validate
from rlhf.data.files import READERS
from rlhf.data.load import load_rows
from rlhf.data.rows import KINDS
from rlhf.data.splits import split_rows
from rlhf.errors import UserError

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

FEW, MANY = 15, 300
CHECKS_OFF = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
ENDINGS = (*READERS, ".jsonl.gz", ".csv.gz", ".json.gz")

# Names that the readers and importers look at, so that random rows come near to what they know.
NAMES = """prompt completion chosen rejected completions ranks label messages text text_pair tokens tags question context
answers choices conversations conversation instruction input output history system response Q A id event role content from
value name weight tools functions images source score score_chosen score_rejected rating rank answer_start is_impossible
paragraphs qas data title premise hypothesis sentence1 sentence2 sentence sentence_pair ner_tags options answer correct
kto_tag parent_id message_id message_tree_id lang labels utterances turns human gpt ctx endings context_a preference winner
model_a model_b conversation_a conversation_b responses overall_score critique completion_a annotations""".split()

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 10**400, 2**63]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "",
            " ",
            "\0",
            "user",
            "assistant",
            "O",
            "B-x",
            "\ud800",
            "true",
            "1",
            "[]",
            "\n\nHuman: a",
        ]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
rows = st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=4)), values, max_size=6)


@st.composite
def near_rows(draw):
    """Rows of one kind, with a few columns that were changed, dropped or added."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        row = dict(KINDS[kind].example)
        for _ in range(draw(st.integers(0, 2))):
            column = draw(st.sampled_from([*row, *NAMES]))
            if draw(st.booleans()):
                row[column] = draw(values)
            else:
                row.pop(column, None)
        made.append(row)
    return made


def json_lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def table(rows, delimiter):
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, delimiter=delimiter, escapechar="\\")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8", errors="surrogatepass")


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Reads a content as a recipe and as `validate` do. Anything but rows and a UserError is a failure."""
    monkeypatch.setenv("RLHF_CACHE", "off")

    def check(content: bytes, ending: str, kinds=tuple(KINDS), **options):
        path = tmp_path / f"rows{ending}"
        path.write_bytes(gzip.compress(content, 1) if ending.endswith(".gz") else content)
        for skip_bad in (False, True):
            try:
                loaded = load_rows(str(path), kinds=kinds, skip_bad=skip_bad, **options)
                assert len(loaded.rows) > 0
                if len(loaded.rows) > 1:
                    split_rows(loaded.rows, 0.5, 0, loaded.kind)
            except UserError as error:
                assert str(error)
        try:
            format_report(validate(str(path)))
        except UserError as error:
            assert str(error)

    return check


def drawn(strategy):
    """Runs a test with few examples, and with many where slow tests are run."""

    def decorate(test):
        @pytest.mark.parametrize(
            "count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
        )
        def run(check, count):
            @settings(
                max_examples=count,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=CHECKS_OFF,
            )
            @given(strategy)
            def each(example):
                test(check, example)

            each()

        run.__name__ = test.__name__
        run.__doc__ = test.__doc__
        return run

    return decorate


kinds_of_a_recipe = st.sampled_from(
    [tuple(KINDS), ("ranking",), ("prompt",), ("prompt_completion", "messages", "text"), ("ner",)]
)


@drawn(st.tuples(st.binary(max_size=200), st.sampled_from(ENDINGS)))
def test_random_bytes(check, example):
    check(*example)


@drawn(st.tuples(st.binary(max_size=60), st.sampled_from([".jsonl.gz", ".parquet"])))
def test_damaged_packed_files(check, example):
    damage, ending = example
    content = json_lines([{"text": "abc"}] * 3)
    if ending == ".parquet":
        check(b"PAR1" + damage + b"PAR1", ending)
        return
    packed = gzip.compress(content)
    check(packed[: len(damage)] + damage, ".jsonl")
    check(packed, ".jsonl")


@drawn(
    st.tuples(st.text(max_size=200), st.sampled_from([".txt", ".conll", ".tsv", ".csv", ".json"]))
)
def test_random_text(check, example):
    text, ending = example
    check(text.encode("utf-8", errors="surrogatepass"), ending)


conll_line = st.lists(
    st.sampled_from(["a", "O", "B-x", "I-x", "#", "", "-DOCSTART-", "I-", "\u3000"]), max_size=4
)


@drawn(st.tuples(st.lists(conll_line, max_size=8), st.sampled_from([" ", "\t"])))
def test_random_conll(check, example):
    lines, separator = example
    text = "\n".join(separator.join(line) for line in lines)
    check(text.encode(), ".conll")
    check(text.encode(), ".txt")


@drawn(st.tuples(st.lists(rows, max_size=3), kinds_of_a_recipe))
def test_random_objects(check, example):
    made, kinds = example
    check(json_lines(made), ".jsonl", kinds)
    check(json.dumps({"data": made}).encode(), ".json", kinds)


@drawn(st.tuples(near_rows(), kinds_of_a_recipe, st.booleans()))
def test_rows_near_a_kind(check, example):
    made, kinds, as_array = example
    check(json_lines(made), ".jsonl", kinds)
    if as_array:
        check(json.dumps(made, indent=1).encode(), ".json", kinds)
    check(table(made, ","), ".csv", kinds)
    check(table(made, "\t"), ".tsv", kinds)


@drawn(
    st.tuples(st.text(alphabet="ab,\"\n\r\t\\'", max_size=60), st.sampled_from([".csv", ".tsv"]))
)
def test_random_tables(check, example):
    text, ending = example
    check(f"text,label\n{text}".encode(), ending)
    check(f"text\tlabel\n{text}".encode(), ending)
