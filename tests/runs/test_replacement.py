"""Files of a run folder that are replaced: whole and old, or whole and new."""

import pytest

from rlhf.runs import replacement as module
from rlhf.runs.replacement import replacement


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("old a")
    (tmp_path / "b.txt").write_text("old b")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old.txt").write_text("old")
    return tmp_path


def content(folder) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


OLD = {"a.txt": "old a", "b.txt": "old b", "adapter/old.txt": "old"}


def write(folder) -> None:
    (folder / "b.txt").write_text("new b")
    (folder / "c.txt").write_text("new c")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "new.txt").write_text("new")


def test_new_files_replace_those_of_their_names(folder):
    with replacement(folder) as temporary:
        write(temporary)
        assert content(folder).items() >= OLD.items()  # until all are written
    expected = {"a.txt": "old a", "b.txt": "new b", "c.txt": "new c", "adapter/new.txt": "new"}
    assert content(folder) == expected


def test_an_error_replaces_nothing(folder):
    with pytest.raises(ValueError), replacement(folder) as temporary:
        write(temporary)
        raise ValueError
    assert content(folder) == OLD


def test_a_crash_between_two_files_leaves_whole_ones(folder, monkeypatch):
    """And what it left in the temporary folder does not come back."""

    def crash(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.durable, "boundary", crash)
    monkeypatch.setattr(module, "remove_folder", lambda path: None)
    with pytest.raises(KeyboardInterrupt), replacement(folder) as temporary:
        (temporary / "a.txt").write_text("new a")
        (temporary / "b.txt").write_text("new b")
    assert (folder / "a.txt").read_text() == "new a"
    assert (folder / "b.txt").read_text() == "old b"
    monkeypatch.undo()
    with replacement(folder) as temporary:
        assert content(temporary) == {}
    assert (folder / "b.txt").read_text() == "old b"
