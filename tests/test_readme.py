"""The pages say what the newest committed records say, and name files and names that exist."""

import importlib.util
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from rlhf.__main__ import COMMANDS, main
from rlhf.commands.recipes import find_scripts
from rlhf.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def readme():
    """The module benchmarks/readme.py."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_name(paths):
    return pytest.mark.parametrize("page", paths, ids=lambda path: path.name)


@by_name(PAGES)
def test_numbers_are_those_of_the_newest_records(readme, page):
    if page in readme.pages():
        text = page.read_text(encoding="utf-8")
        assert readme.fill(page) == text, f"{page.name}: run python benchmarks/readme.py"


@by_name(PAGES)
def test_every_marker_is_closed_and_shown_as_text(page):
    """GitHub shows a line that begins with a comment as raw HTML, so a number may not begin one."""
    text = page.read_text(encoding="utf-8")
    for kind in ("number", "table", "record", "picture"):
        assert text.count(f"<!-- {kind} ") == text.count(f"<!-- /{kind} -->"), kind
    assert not re.findall(r"^ *<!-- (?:number|record).*", text, flags=re.M)


@by_name(PAGES)
def test_every_table_of_a_record_is_filled(page):
    for table in re.findall(r"<!-- table .*?-->(.*?)<!-- /table -->", page.read_text(), flags=re.S):
        assert table.count("\n|") >= 3


def test_every_table_is_on_a_page(readme):
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in readme.TABLES:
        assert f"<!-- table {name} -->" in text, name


def test_the_newest_date_counts_and_a_question_has_its_own_records(readme, tmp_path, monkeypatch):
    folder = tmp_path / "bert" / "results"
    folder.mkdir(parents=True)
    names = "2026-12-01 speed-2026-11-30 speed-2026-11-29 speed-more-2027-01-01".split()
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps({"name": name}))
    monkeypatch.setattr(readme, "HERE", tmp_path)
    assert readme.newest("bert").stem == "2026-12-01"
    assert readme.newest("bert/speed").stem == "speed-2026-11-30"
    with pytest.raises(SystemExit, match="no record of bert/tasks"):
        readme.newest("bert/tasks")


def test_values_are_looked_up_by_keys_indexes_and_stars(readme):
    record = {"runs": [{"seconds": 1.0}, {"seconds": 2.5}], "curves": {"0": [3, 4]}, "note": None}
    assert readme.look_up(record, "runs.-1.seconds") == 2.5
    assert readme.look_up(record, "curves.0.1") == 4
    assert readme.as_text(readme.look_up(record, "runs.*.seconds"), ".1f") == "1.0 and 2.5"
    assert readme.as_text([0, 1, 2]) == "0, 1 and 2"
    assert readme.as_text(record["note"], ".1f") == "-"
    with pytest.raises((KeyError, ValueError)):
        readme.look_up(record, "missing")


def test_a_page_is_filled(readme, tmp_path, monkeypatch):
    """Numbers in a sentence, a table, the record and the path of its picture. A dirty tree is said in words."""
    folder = tmp_path / "benchmarks" / "algorithms" / "results"
    folder.mkdir(parents=True)
    record = {"table": ["| a |", "|---|", "| 1 |"], "commit": "abc+", "machine": {"cores": 1}}
    (folder / "2026-12-01.json").write_text(json.dumps(record | {"gb": 1.26}))
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(
        "It took <!-- number algorithms gb .1f -->9<!-- /number --> GB.\n"
        "<!-- table algorithms -->\nold\n<!-- /table -->\n"
        "See <!-- record algorithms --><!-- /record -->.\n"
        "<!-- picture algorithms -->![curves](old.png)<!-- /picture -->\n"
    )
    monkeypatch.setattr(readme, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    text = readme.fill(page)
    assert "It took <!-- number algorithms gb .1f -->1.3<!-- /number --> GB." in text
    assert "<!-- table algorithms -->\n| a |\n|---|\n| 1 |\n<!-- /table -->" in text
    path = "benchmarks/algorithms/results/2026-12-01"
    assert f"`{path}.json`, commit abc with uncommitted changes, 1 core" in text
    assert f"![curves](../{path}.png)" in text


def test_a_record_of_one_seed_or_of_several_fits_the_same_page(readme):
    """A spread is shown where there is one, and the KL of best of n is named as the bound that it is."""
    names = "quality naturalness coverage kl distinct_2".split()
    one, three = (
        {"mean": 1.0, "sd": None, "values": [1]},
        {"mean": 2, "sd": 0.5, "values": [1, 2, 3]},
    )
    methods = {"best of 16": dict.fromkeys(names, one), "PPO": dict.fromkeys(names, three)}
    methods["PPO"]["seconds"] = {"mean": 229.4, "sd": 3.2, "values": [229]}
    table = readme.TABLES["alignment"]({"methods": methods}).splitlines()
    assert table[2] == "| best of 16 | 1.00 | 1.00 | 1.00 | at most 1.0 | 1.00 | - |"
    assert table[3].endswith("| 2.00 ± 0.50 | 2.0 ± 0.5 | 2.00 ± 0.50 | 229 ± 3 |")


def test_a_ladder_shows_the_scores_that_its_record_has(readme):
    numbers = {"mean": 0.25, "sd": 0.1, "values": [0.15, 0.25, 0.35]}
    once = {"mean": 7.0, "sd": None, "values": [7]}
    rung = {"year": 1990, "parameters": 1234, "bits_per_byte": numbers, "seconds": once}
    shown = {"rungs": {"rnn": rung | {"on_topic": numbers}}}
    assert readme.ladder(shown).splitlines() == [
        "| rung | year | learned numbers | bits per byte | on topic, % | seconds |",
        "|---|---|---|---|---|---|",
        "| rnn | 1990 | 1,234 | 0.250 ± 0.100 | 25.0 ± 10.0 | 7 |",
    ]
    taken = once | {"mean": 3.0}
    rung |= {"cpu_seconds": taken}
    shown = {"rungs": {"sft": rung | {"bits_per_byte": None, "chrf": once}}}
    table = readme.ladder(shown, readme.LADDER_KOREAN).splitlines()
    assert table[0] == "| 단계 | 연도 | 학습된 수 | 바이트당 비트 | chrF | 프로세서 초 |"
    assert table[2] == "| sft | 1990 | 1,234 | - | 7.0 | 3 |"
    assert readme.ladder({"rungs": {"rnn": rung}}).splitlines()[2].count("|") == 6
    answers = {"prompts": ["안녕?"], "answers": {"rnn": ["a|b\nc"]}}
    assert readme.ladder_answers(answers, "단계").endswith("| rnn | a/b c |")


ANSWERS = """\
{"prompt": "Hi there!!", "completions": ["Hello.", "What?", "Hey, how are you now"], "ranks": [0, 1, 0]}
{"prompt": "How are you??!", "completions": ["Fine.", "Bad..."], "ranks": [0, 1]}
{"prompt": "Hm", "completions": ["A", "B"], "ranks": [0]}
{"prompt": "Hm", "completions": ["A", ""], "ranks": [0, 1]}
{"prompt": "Hm", "completions": ["A", "B"], "ranks": "unfinished
"""


def test_the_example_of_validate_is_what_it_prints(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    example = re.search(r"\$ rlhf validate answers.jsonl\n(.*?)```", page, flags=re.S).group(1)
    (tmp_path / "answers.jsonl").write_text(ANSWERS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "answers.jsonl"]) == 2
    assert capsys.readouterr().out.strip() == example.strip()


@by_name(PAGES)
def test_linked_files_exist(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_named_recipes_and_targets_exist():
    for recipe in re.findall(r"recipes/\w+\.(?:py|sh)", README):
        assert (ROOT / recipe).is_file(), recipe
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.M)) <= set(targets)


@pytest.mark.parametrize("name", TASKS)
def test_the_pages_know_every_task(name):
    """Its command, its report, and what `rlhf predict` adds."""
    metrics = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    data = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    recipes = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert f"`rlhf {name} " in README and f"`{name}.py`" in recipes
    assert f"`{TASKS[name].report.file}`" in metrics
    assert re.search(rf"^\| {name} \| .*`predicted_", data, flags=re.M)


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(script.name for script in find_scripts().values() if script.is_recipe)]
)
def test_what_you_can_do_names_every_command(command):
    section = README.split("## What you can do")[1].split("\n## ")[0]
    assert re.search(rf"`rlhf {command}\b", section)


def test_the_new_names_of_the_changelog_exist():
    """The right column of its tables. A name that begins with a dot continues the folder of the one before it."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    names = []
    for row in re.findall(r"^\| .* \| (.*) \|$", changelog, flags=re.M):
        for name in re.findall(r"`((?:rlhf)?\.[\w.]+)", row):
            if name.startswith("."):
                name = names[-1].rpartition(".")[0] + name
            names.append(name)
    assert len(names) > 40
    assert [name for name in names if not is_importable(name)] == []


def is_importable(name: str) -> bool:
    """True for a module, or a name in one."""
    try:
        import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return hasattr(import_module(module), attribute)
    return True


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the README, without its header."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


@pytest.mark.parametrize("row", rows_of("Repository layout"), ids=lambda row: row[0])
def test_the_layout_names_folders_that_exist(row):
    assert (ROOT / row[0].strip("`")).is_dir()


def test_the_layout_names_every_folder_of_the_package():
    folders = {row[0].strip("`") for row in rows_of("Repository layout")}
    packages = {f"rlhf/{path.parent.name}/" for path in (ROOT / "rlhf").glob("*/__init__.py")}
    assert packages - {"rlhf/recipes/"} <= folders


@pytest.mark.parametrize("row", rows_of("Where to add"), ids=lambda row: row[0])
def test_where_to_add_names_a_file_and_what_is_in_it(row):
    _, where, what = row
    path = ROOT / re.findall(r"`([\w/]+\.py)`", where)[0]
    source = path.read_text(encoding="utf-8")
    for table in re.findall(r"`([A-Z]{2,})`", what):
        assert re.search(rf"^{table}\b", source, flags=re.M), f"{table} is not in {path}"
