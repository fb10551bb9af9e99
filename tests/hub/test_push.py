"""Pushing a folder: one commit or none, whatever goes wrong."""

import json

import pytest

from rlhf.errors import UserError
from rlhf.hub.push import push_folder
from tests.hub.conftest import TOKEN
from tests.hub_double import git_sha1

WEIGHTS = bytes(range(256)) * 4
COMMIT = "POST /api/models/alice/m/commit/main"


@pytest.fixture
def folder(tmp_path):
    """A folder with text, weights and a picture."""
    root = tmp_path / "run"
    (root / "plots").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: other\n---\n\n# A card\n")
    (root / "config.json").write_text("{}")
    (root / "model.safetensors").write_bytes(WEIGHTS)
    (root / "plots" / "curves.png").write_bytes(b"\x89PNG\0\0")
    return root


def files_of(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def on_the_hub(hub, name: str = "alice/m", **options) -> dict[str, bytes]:
    contents = hub.contents(name, **options)
    contents.pop(".gitattributes")
    return contents


def commits(hub, name: str = "alice/m", kind: str = "models") -> list[str]:
    """The messages of the commits after the first, which makes the repository."""
    return list(hub.repo(name, kind).messages.values())[1:]


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_push_is_one_commit_and_the_second_none(hub, folder, kind):
    first = push_folder(folder, "m", kind=kind, message="Share a run")
    second = push_folder(folder, "alice/m", kind=kind, message="Share a run")
    assert on_the_hub(hub, kind=f"{kind}s") == files_of(folder)
    assert commits(hub, kind=f"{kind}s") == ["Share a run"]
    assert (first.changed, second.changed) == (True, False)
    assert first.commit == second.commit == hub.repo("alice/m", f"{kind}s").refs["main"]
    assert hub.repo("alice/m", f"{kind}s").files()["config.json"].oid == git_sha1(b"{}")


def test_only_what_changed_is_sent_and_old_weights_go(hub, folder):
    push_folder(folder, "m")
    hub.put("alice/m", {"model-00001-of-00002.safetensors": b"old", "NOTES.md": b"mine"})
    (folder / "config.json").write_text('{"a": 1}')
    uploads = len([line for line in hub.requests if line.startswith("PUT")])
    assert push_folder(folder, "m").changed
    assert len([line for line in hub.requests if line.startswith("PUT")]) == uploads
    contents = on_the_hub(hub)
    assert contents.pop("NOTES.md") == b"mine"
    assert contents == files_of(folder)


def test_a_private_repository_and_a_pull_request(hub, folder):
    push_folder(folder, "m", private=True)
    assert hub.repo("alice/m").private
    (folder / "config.json").write_text('{"a": 1}')
    pushed = push_folder(folder, "m", pr=True)
    assert "/discussions/1" in pushed.url
    assert hub.contents("alice/m")["config.json"] == b"{}"
    assert hub.contents("alice/m", revision="refs/pr/1")["config.json"] == b'{"a": 1}'


def test_a_branch_is_made(hub, folder):
    pushed = push_folder(folder, "m", revision="trial")
    assert hub.repo("alice/m").refs["trial"] == pushed.commit
    assert "config.json" not in hub.contents("alice/m")


# ---- what passes ----


@pytest.mark.parametrize("what", [429, 500, 503, "landed", "drop"])
def test_a_commit_that_fails_once_is_made_once(hub, folder, what):
    hub.fail(COMMIT, what, headers={"Retry-After": "0"} if what == 429 else {})
    assert push_folder(folder, "m", message="one").changed
    assert on_the_hub(hub) == files_of(folder)
    assert commits(hub) == ["one"]


@pytest.mark.parametrize(
    "where", ["whoami", "repos/create", "preupload", "lfs/objects", "PUT /lfs", "tree"]
)
@pytest.mark.parametrize("what", [503, pytest.param("slow", marks=pytest.mark.slow)])
def test_every_request_may_fail_once(hub, folder, where, what, no_pauses):
    hub.fail(where, what, seconds=0.05)
    push_folder(folder, "m", message="one")
    assert on_the_hub(hub) == files_of(folder)
    assert commits(hub) == ["one"]
    assert not hub.faults[0].times


def test_a_commit_in_between_is_kept(hub, folder):
    push_folder(folder, "m")
    (folder / "config.json").write_text('{"a": 1}')

    def answer(method, path, *rest):
        if path.endswith("/commit/main") and "others.md" not in hub.contents("alice/m"):
            hub.put("alice/m", {"others.md": b"theirs"})
        return plain(method, path, *rest)

    plain, hub.answer = hub.answer, answer
    try:
        push_folder(folder, "m")
    finally:
        hub.answer = plain
    contents = on_the_hub(hub)
    assert contents.pop("others.md") == b"theirs"
    assert contents == files_of(folder)


# ---- what does not pass ----


def refusal(folder, repo: str = "m", **options) -> str:
    with pytest.raises(UserError) as caught:
        push_folder(folder, repo, **options)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_stays_busy_changes_nothing(hub, folder, status):
    push_folder(folder, "m")
    before = hub.contents("alice/m")
    (folder / "config.json").write_text('{"a": 1}')
    hub.fail(COMMIT, status, times=99)
    assert "the Hub is busy or down" in refusal(folder)
    assert hub.contents("alice/m") == before


def test_412_for_ever(hub, folder):
    hub.fail(COMMIT, 412, times=99)
    assert "others commit all the time" in refusal(folder)
    assert on_the_hub(hub) == {}


def test_no_token(hub, folder, log_out):
    assert "there is no token" in refusal(folder)
    assert not hub.requests


def test_an_unknown_token(hub, folder):
    hub.users.clear()
    assert "does not know this token" in refusal(folder)


def test_a_token_that_may_only_read(hub, folder):
    hub.add_user("alice", TOKEN, role="read")
    assert "may only read" in refusal(folder)


def test_the_token_is_revoked_meanwhile(hub, folder):
    hub.fail(COMMIT, 401)
    assert "m:" in refusal(folder)
    assert on_the_hub(hub) == {}


def test_a_name_of_somebody_else(hub, folder):
    hub.put("bob/m", {"config.json": b"{}"})
    assert "alice is not a member of bob" in refusal(folder, "bob/m")
    assert hub.contents("bob/m") == {"config.json": b"{}"}


def test_the_organisation_of_the_user(hub, folder):
    hub.add_user("alice", TOKEN, orgs=("lab",))
    push_folder(folder, "lab/m")
    assert on_the_hub(hub, "lab/m") == files_of(folder)


def test_a_name_that_cannot_be(hub, folder):
    assert "not a name that the Hub allows" in refusal(folder, "a/b/c")


def test_a_private_push_never_goes_to_a_public_repository(hub, folder):
    hub.put("alice/m", {"config.json": b"{}"})
    assert "exists and is public" in refusal(folder, private=True)


def test_no_network(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "no connection to http://127.0.0.1:9" in refusal(folder)


def test_a_token_at_the_start_of_a_line_is_not_shared(hub, folder):
    """In JSON the line break before it is a letter. It is of another user."""
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": "mine:\nhf_" + "b" * 34}) + "\n")
    assert "samples.jsonl holds a token" in refusal(folder)


def test_a_token_in_a_file_is_not_shared(hub, folder):
    (folder / "run.json").write_text(f'{{"command": "--hub_token {TOKEN}"}}')
    assert "run.json holds a token" in refusal(folder)
    assert "alice/m" not in {name for _, name in hub.repos}


def test_a_card_that_the_hub_refuses(hub, folder):
    (folder / "README.md").write_text("---\nlicense: invented-1.0\n---\n")
    refusal(folder)
    assert on_the_hub(hub) == {}
