"""The reading path of README.md: few files, few lines, each read once."""

import importlib.util
import re

import pytest

spec = importlib.util.spec_from_file_location(
    "reading_path", __file__.replace("test_reading_path", "reading_path")
)
reading_path = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reading_path)
PATH = reading_path.PATH


def test_one_ppo_run_is_read_in_13_files_and_1400_lines():
    assert len(PATH) <= 13
    counts = {path: reading_path.lines_to_read(path, names) for path, names in PATH.items()}
    assert sum(counts.values()) <= 1400, counts


def test_the_readme_lists_these_files_in_this_order():
    readme = (reading_path.ROOT / "README.md").read_text(encoding="utf-8")
    _, _, after = readme.partition("Read one PPO run in this order:\n")
    numbered = re.match(r"\n((?:\d+\. .*\n)+)", after)
    assert numbered, "README.md has no numbered list after this line"
    listed = re.findall(r"^\d+\. `([^`]+)`", numbered[1], flags=re.MULTILINE)
    assert listed == list(PATH)


def test_a_name_that_does_not_exist_is_noticed():
    with pytest.raises(KeyError):
        reading_path.lines_to_read("rlhf/policy_gradient/roles.py", ["no_such_role"])
