"""The command of a push to the Hub: what somebody chose in the app as the words of `rlhf share`.

The process of the push has the token: from HF_TOKEN in its environment, or from `hf auth login` of this machine. It is
never in a command, and the server itself does not read it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.folders import short_path

RUN, FEEDBACK, SPACE = "run", "feedback", "space"
KINDS = (RUN, FEEDBACK, SPACE)


@dataclass(frozen=True)
class Push:
    """A push: the things to share, and the repository.

    kind: of KINDS. sources: names of runs below the folder of the runs; none for the feedback.
    repo: "name" or "owner/name". private: of a new repository. merge: a LoRA adapter into its base.
    pr: as a pull request.
    """

    kind: str
    sources: tuple[str, ...]
    repo: str
    private: bool = True
    merge: bool = False
    pr: bool = False

    def settings(self) -> dict:
        """The same as a map for the record of the job."""
        return asdict(self) | {"sources": list(self.sources)}

    @property
    def title(self) -> str:
        """The push in a line: `demo/ppo -> ann/ppo`."""
        return f"{', '.join(self.sources) or self.kind} -> {self.repo}"


def read_push(asked: dict) -> Push:
    """The push that a page or a client asks for. UserError for anything that is not a push."""
    kind, sources = asked.get("kind"), asked.get("sources") or []
    if kind not in KINDS:
        raise UserError(f"kind={kind!r:.40}: one of {', '.join(KINDS)}")
    # One run is what most people share.
    if isinstance(sources, str):
        sources = [sources]
    if not isinstance(sources, list) or not all(isinstance(name, str) for name in sources):
        raise UserError("sources: a list of names of runs is expected")
    # A client may send any value: only true is a yes.
    flags = {name: asked.get(name) is True for name in ("private", "merge", "pr")}
    if kind == FEEDBACK:
        sources = []
    elif not sources:
        raise UserError("sources: choose a run to share")
    elif kind == RUN and len(sources) > 1:
        raise UserError("sources: one run goes into one repository; a Space takes several")
    return Push(kind, tuple(sources), str(asked.get("repo") or ""), **flags)


def share_words(push: Push, folders: Sequence[Path]) -> list[str]:
    """The arguments of `rlhf share`. folders: of the sources."""
    words = [short_path(folder.absolute()) for folder in folders]
    # A checked name, so that it cannot be a flag.
    words += ["--repo", push.repo]
    if push.kind == FEEDBACK:
        words += ["--type", "dataset"]
    if push.kind == SPACE:
        words.append("--space")
    for name in ("private", "merge", "pr"):
        if getattr(push, name):
            words.append(f"--{name}")
    return words
