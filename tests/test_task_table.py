"""TASKS: a task is its folder, its recipe, one row and one view, and nothing else knows its name."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from string import Formatter

import pytest
import transformers

from rlhf.data.rows import FORMS, KINDS, RELATIONS
from rlhf.runs.record import ARCHITECTURES
from rlhf.serving.catalogue import SERVED
from rlhf.serving.predictors import resolve
from rlhf.serving.ui.tasks import VIEWS
from rlhf.tasks import TASKS
from rlhf.tasks.answers import Answers

ROOT = Path(__file__).resolve().parents[1]
NAMES = pytest.mark.parametrize("name", TASKS)


@NAMES
def test_a_task_has_its_folder_its_recipe_and_its_view(name):
    for file in ("__init__", "encode", "metrics", "predictor"):
        assert (ROOT / "rlhf" / "tasks" / name / f"{file}.py").is_file()
    assert callable(import_module(f"recipes.{name}").main)
    assert (ROOT / "recipes" / "configs" / name).is_dir()
    assert [view.kind for view in VIEWS].count(name) == 1


def test_no_two_tasks_share_a_head():
    heads = [task.head for task in TASKS.values()]
    assert len(set(heads)) == len(heads), "the head in config.json tells the task of a model"


@NAMES
def test_the_row_of_a_task_names_things_that_exist(name):
    task = TASKS[name]
    assert issubclass(resolve(task.answers), Answers)
    assert callable(resolve(task.predictor).predict)
    assert hasattr(transformers, task.head)
    assert name in task.trained_on and set(task.inputs) <= set(KINDS)
    assert ARCHITECTURES[task.architecture] == name and name in SERVED
    for kind, rows in task.rows.items():
        assert set(rows.columns.values()) <= set(FORMS)
        assert not rows.relation or rows.relation[0] in RELATIONS
        assert not rows.unanswered or set(TASKS[name].rows[rows.unanswered].columns) == (
            rows.columns.keys() - {task.answer}
        ), kind


@NAMES
def test_the_snippet_of_the_card_takes_the_texts_of_its_task(name):
    task = TASKS[name]
    filled_in = {"path", "texts", "aggregation", "longest"}  # by rlhf.runs.card
    fields = {field for _, field, _, _ in Formatter().parse(task.snippet) if field}
    assert fields <= {*task.texts, *task.optional} | filled_in


def test_tasks_with_one_column_have_one_form_of_it():
    forms: dict[str, set[str]] = {}
    for task in TASKS.values():
        for rows in task.rows.values():
            for column, form in rows.columns.items():
                forms.setdefault(column, set()).add(form)
    assert all(len(found) == 1 for found in forms.values()), forms


@cache
def strings(path: Path) -> list[str]:
    """The string constants of a file that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr):
                docstrings.add(id(first.value))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                found.append(node.value)
    return found


def may_name(name: str) -> set[Path]:
    """Files that may name a task: the table, the layouts of foreign files, and the prompts that rows become."""
    names = ("task_table.py", "data/importers.py", "serving/ui/tasks.py")
    names += ("few_shot/questions.py", "few_shot/prompts.py", "few_shot/export.py")
    files = {ROOT / "rlhf" / name for name in names}
    return files | {ROOT / "recipes" / f"{name}.py"} | set((ROOT / "rlhf" / "tasks").rglob("*.py"))


@NAMES
def test_nothing_else_names_a_task(name):
    files = [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    for path in set(files) - may_name(name):
        for text in strings(path):
            assert text != name, path
            if "_" in name:  # the others are also words
                assert name not in text, f"{path}: {text}"


def test_no_second_names_are_left():
    second = re.compile(r"\b(tagger|taggers|reader|Classifier|Tagger|Reader)\b")
    for path in [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for text in strings(path):
            assert not second.search(text), f"{path}: {text}"


def test_the_table_needs_only_the_standard_library():
    code = "import sys, rlhf.task_table; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["False", "False"]


FIFTH = """
import dataclasses, json, sys
from pathlib import Path
from rlhf.task_table import TASKS, Rows

rows = {
    "fifth": Rows({"left": "text", "verdict": "label"}, {"left": "a", "verdict": "b"}, unanswered="half"),
    "half": Rows({"left": "text"}, {"left": "a"}),
}
TASKS["fifth"] = dataclasses.replace(
    TASKS["ner"], rows=rows, inputs=("half",), texts=("left",), answer="verdict", title="Fifth",
    head="AutoModelForFifth",
)
folder = Path(sys.argv[1])
(folder / "config.json").write_text(json.dumps({"architectures": ["BertForFifth"]}))

from rlhf.runs.record import RunRecord, model_kind
from rlhf.data.rows import ANSWERS, CHECKS, KINDS, recognise, serves
from rlhf.commands.predict import kind_of_run, kinds_of_rows
from rlhf.serving.catalogue import find_models
from rlhf.runs.card import card_text

RunRecord("fifth", status="done").save(folder)
assert KINDS["fifth"].recipes == ("fifth",) and recognise({"left", "verdict"}) is KINDS["fifth"]
assert CHECKS["left"](" ") == "empty" and ANSWERS["fifth"] == "verdict"
assert serves("fifth", ["half"]) == "half"
assert model_kind(folder) == kind_of_run(str(folder)) == "fifth"
assert kinds_of_rows("fifth", str(folder)) == ("half",)
assert list(find_models(folder)) == ["fifth"]
assert "pipeline_tag: token-classification" in card_text(folder)
print("picked up")
"""


def test_a_fifth_row_is_picked_up_by_data_records_cards_predict_and_the_catalogue(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FIFTH, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "picked up", done.stderr
