"""Benchmark records: written one way, only from a clean tree, with a header that tells where they come from."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
HEADER = ("question", "date", "commit", "versions", "machine")
RECORDS = sorted(BENCHMARKS.glob("**/results/*.json"))


def load(path: str):
    """A module of benchmarks/, which is not a package."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), BENCHMARKS / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record():
    return load("record")


def short(path: Path) -> str:
    return str(path.relative_to(BENCHMARKS))


# ---- a clean tree ------------------------------------------------------------------------------------------------


def commit_in(folder: Path) -> None:
    """A git checkout with one commit of the files that `check_clean_tree` runs."""
    modules = ("__init__", "digests", "errors", "runs/__init__", "runs/durable", "runs/record")
    for name in ("benchmarks/record.py", *(f"rlhf/{module}.py" for module in modules)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / ".gitignore").write_text("__pycache__/\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "All"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def check_in(folder: Path) -> subprocess.CompletedProcess:
    code = "from benchmarks.record import check_clean_tree; print(check_clean_tree())"
    # Nothing outside the folder may be taken for its checkout.
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_record_needs_a_clean_checkout(tmp_path):
    commit_in(tmp_path)
    head = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(head, cwd=tmp_path, check=True, capture_output=True, text=True)
    done = check_in(tmp_path)
    assert (done.returncode, done.stdout) == (0, commit.stdout)

    (tmp_path / "new.py").write_text("x = 1\n")  # a file that git does not know counts too
    done = check_in(tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert f"this one is '{commit.stdout.strip()}+': commit first" in done.stderr


def test_a_record_needs_git(tmp_path):
    commit_in(tmp_path)
    (tmp_path / ".git").rename(tmp_path / "no_git")
    done = check_in(tmp_path)
    assert done.returncode == 2 and "this one is 'unknown'" in done.stderr


def test_runs_of_an_unclean_tree_are_not_recorded(record, capsys):
    clean = [{"code": "bbb"}, {"code": "aaa"}, {"code": "bbb"}]
    assert record.clean_commits(clean) == ["aaa", "bbb"]
    for unclean, name in (({"code": "ccc+"}, "ccc+"), ({}, "unknown")):
        with pytest.raises(SystemExit) as left:
            record.clean_commits([*clean, unclean])
        assert left.value.code == 2 and f"error: runs of {name} " in capsys.readouterr().err


# ---- what is written ---------------------------------------------------------------------------------------------


def test_write_record_puts_a_header_before_the_content(record, tmp_path, monkeypatch):
    monkeypatch.setattr(record.time, "strftime", lambda format: "2026-11-27")
    question = "\nHow fast?\n\n    python run.py\n"
    path = record.write_record(tmp_path, question, {"data": ["/a/b.txt"]}, commit="abc", name="x")
    assert path == tmp_path / "results" / "x-2026-11-27.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert tuple(content) == (*HEADER, "data")
    assert content["question"] == "How fast?" and content["commit"] == "abc"
    assert content["versions"]["code"] == "abc" and content["versions"]["torch"]
    assert content["machine"].keys() == {"cpu", "cpu_flags", "cores", "device"}
    assert content["data"] == ["b.txt"]
    unnamed = record.write_record(tmp_path, question, {}, commit="abc")
    assert unnamed.name == "2026-11-27.json"


def test_as_json_keeps_a_list_of_plain_values_on_one_line(record):
    value = {"a": [1, 2.5, "é"], "b": [[1], [2]], "c": {}, "d": [], "e": {"f": None, "g": True}}
    assert record.as_json(value) == (
        "{\n"
        ' "a": [1, 2.5, "é"],\n'
        ' "b": [\n  [1],\n  [2]\n ],\n'
        ' "c": {},\n'
        ' "d": [],\n'
        ' "e": {\n  "f": null,\n  "g": true\n }\n'
        "}"
    )
    assert json.loads(record.as_json(value)) == value


def test_portable_keeps_the_last_name_of_absolute_paths(record):
    value = {"a": "/home/me/data.txt", "b": ["runs/demo", Path("/x/y")], "c": "/two\nlines", "d": 1}
    expected = {"a": "data.txt", "b": ["runs/demo", "y"], "c": "/two\nlines", "d": 1}
    assert record.portable(value) == expected


def test_rounded_keeps_significant_digits(record):
    value = {"a": [123456.0, 0.000123456], "b": (1.00005, 7), "c": "0.123456", "d": None}
    expected = {"a": [123500.0, 0.0001235], "b": [1.0, 7], "c": "0.123456", "d": None}
    assert record.rounded(value) == expected
    assert record.rounded(1.23456789, 7) == 1.234568


def test_spread_is_mean_and_sample_deviation(record):
    # Deviations from the mean 2: -1, 0, 1. Their squares add up to 2, over n - 1 = 2 is 1.
    assert record.spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0, "values": [1.0, 2.0, 3.0]}
    assert record.spread([5.0]) == {"mean": 5.0, "sd": None, "values": [5.0]}


def test_run_recipe_starts_a_recipe_once(record, tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        finished = record.RunRecord(recipe="ppo", status="done")
        finished.save(tmp_path / "run")

    monkeypatch.setattr(record.subprocess, "run", run)
    for _ in range(2):
        result = record.run_recipe("ppo", tmp_path / "run", seed=1, reward_weights=[1, 0])
        assert result.status == "done"
    folder = str(tmp_path / "run")
    flags = ["--output_dir", folder, "--seed", "1", "--reward_weights", "1", "0"]
    assert commands == [[sys.executable, "recipes/ppo.py", *flags]]


# ---- the benchmarks ----------------------------------------------------------------------------------------------

# These write no record of their own: parts of a benchmark, the tables, and the numbers of a test.
PARTS = {
    "__main__.py",
    "list.py",
    "record.py",
    "readme.py",
    "trl_side.py",
    "ppo_parity/run.py",
    "ppo_parity/worker.py",
    "serving/make_model.py",
    "serving/worker.py",
}
WORKERS = {
    "cases.py",
    "part.py",
    "our_worker.py",
    "trl_worker.py",
    "snapshots.py",
    "clock.py",
    "positions.py",
    "retrieval.py",
    "make_models.py",
}
SCRIPTS = [
    path
    for path in sorted(BENCHMARKS.rglob("*.py"))
    if short(path) not in PARTS and path.name not in {*WORKERS, "matrix_rate.py"}
]


def called(path: Path) -> list[str]:
    """The names of all functions that a file calls, in the order of its lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls.sort(key=lambda node: (node.lineno, node.col_offset))
    return [ast.unparse(node.func).rpartition(".")[2] for node in calls]


def defined(path: Path) -> set[str]:
    """The names of the functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", SCRIPTS, ids=short)
def test_every_benchmark_checks_the_tree_first_and_writes_by_write_record(path):
    calls = called(path)
    assert "check_clean_tree" in calls and "write_record" in calls
    assert calls.index("check_clean_tree") < calls.index("write_record")
    assert not {"code_version", "strftime"} & set(calls), "the header is write_record's"


@pytest.mark.parametrize("path", SCRIPTS, ids=short)
def test_no_benchmark_has_its_own_copy_of_what_record_py_has(path):
    assert not defined(path) & defined(BENCHMARKS / "record.py")


def test_make_bench_lists_every_benchmark_with_its_command():
    command = [sys.executable, "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for path in SCRIPTS:
        name = path.parent.name if path.stem == "run" else f"{path.parent.name}/{path.stem}"
        question = path.read_text(encoding="utf-8").splitlines()[0].removeprefix('"""')
        assert f"{name}: {question}\n" in done.stdout
        assert f"python benchmarks/{short(path)}" in done.stdout
    unknown = subprocess.run([*command, "e3e"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2 and "no benchmark 'e3e'" in unknown.stderr


def test_every_folder_has_a_benchmark():
    folders = {path.parent.parent for path in RECORDS}
    assert folders and folders <= {path.parent for path in SCRIPTS}


def test_every_algorithm_is_compared_with_a_yaml_of_its_own():
    yaml = pytest.importorskip("yaml")
    from rlhf.algorithms import ALGORITHMS

    yamls = load("algorithms/run").YAMLS
    assert yamls.keys() == ALGORITHMS.keys()
    for algorithm, name in yamls.items():
        path = ROOT / "recipes" / "configs" / "ppo" / f"{name}.yaml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert settings.get("algorithm", "ppo") == algorithm


# ---- the committed records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDS, ids=short)
def test_every_committed_record_tells_where_it_comes_from(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(HEADER) <= content.keys()
    assert content["question"].endswith("?") and content["date"] in path.name
    assert content["machine"]["cores"] >= 1
    assert not content["commit"].endswith("+")
    assert "/home/" not in path.read_text(encoding="utf-8")
