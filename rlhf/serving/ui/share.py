"""The Share tab: choose a run, the feedback or a Space, look at its files and its card, and push it to the Hub.

The push is a job with a process of its own. Its token is in the environment of that process, or in the file of
`hf auth login`: the server does not read it, and neither the page, the log nor the command has it.
The functions of `ShareView` are plain; `build` wires them.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from rlhf.serving.jobs.allowed import existing_run
from rlhf.serving.jobs.command import shell_text
from rlhf.serving.jobs.jobs import SHARE, Jobs, read_tail
from rlhf.serving.jobs.records import Job
from rlhf.serving.jobs.sharing import FEEDBACK, RUN, SPACE, Push, read_push, share_words
from rlhf.serving.run_files import list_runs
from rlhf.serving.service import Service
from rlhf.serving.ui import run_view
from rlhf.serving.ui.refusals import told
from rlhf.serving.ui.run_actions import made_by
from rlhf.serving.ui.run_view import escape
from rlhf.serving.ui.share_texts import TEXTS
from rlhf.serving.ui.texts import Refusal, label, language_of, said, tab_line, text
from rlhf.task_table import TASKS

__all__ = ["CSS", "TEXTS", "build"]
TICK = 2  # seconds between two looks at a push
PUSHES_SHOWN = 8
LOG_SHOWN = 4_000  # bytes of the end of a log
FILES_SHOWN = 60
FINISHED = ("done", "trained", "evaluation failed")
# Recipes whose runs a Space can serve; the algorithms are all of ppo.
SERVED = ("pretrain", "sft", "ppo", "dpo", "kto", "ilql", "reward", *TASKS)
CODE = "rlhf/"  # of a Space
WRITTEN_BY_PUSHES = ("hub.json", "push.json")
TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")
URL = re.compile(r"https://huggingface\.co/[\w./-]+")
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of events

CSS = """
#share-preview-button, #share-push {width: auto; align-self: flex-start; min-width: 120px;}
.share-report h4 {margin: 14px 0 6px; font-size: 0.92rem;}
.share-report table {border-collapse: collapse; font-size: 0.85rem; margin: 0 0 6px; display: block; overflow-x: auto;
  border: none !important; padding: 0 !important; width: fit-content; max-width: 100%;}
.share-report .files :is(tr, tbody, thead) {border: none;}
.share-report .files td {border: none; border-bottom: 1px solid var(--border-color-primary); padding: 3px 14px 3px 0;
  font-family: var(--font-mono); font-size: 0.82rem; overflow-wrap: anywhere;}
.share-report .files td + td {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;}
.share-report pre {white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8rem; padding: 10px 12px;
  border: 1px solid var(--border-color-primary); border-radius: 10px; background: var(--block-background-fill); margin: 0;}
.share-report .card {border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 4px 18px 14px;
  overflow-x: auto;}
.share-report ul.notes {margin: 0; padding-left: 1.2em; font-size: 0.88rem;}
.share-pushes .push {border-bottom: 1px solid var(--border-color-primary); padding: 8px 0; font-size: 0.88rem;}
.share-pushes .push .top {display: flex; gap: 10px; align-items: baseline; flex-wrap: wrap; overflow-wrap: anywhere;}
.share-pushes pre {white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.78rem; margin: 6px 0 0;
  max-height: 14em; overflow-y: auto; color: var(--body-text-color-subdued);}
"""  # noqa: E501


class ShareView:
    """The contents and the actions of the tab, without a page."""

    def __init__(self, service: Service):
        self.root = Path(service.runs)
        self.store = getattr(service, "feedback", None)
        self.jobs: Jobs = service.jobs

    def kinds(self) -> list[str]:
        """The kinds of things that this server can share."""
        return [RUN, *([FEEDBACK] if self.store is not None else []), SPACE]

    def runs(self) -> list[str]:
        """Names of the finished runs, the newest first."""
        return [run.name for run in list_runs(self.root) if run.status in FINISHED]

    def models(self) -> list[str]:
        """Names of the finished runs that a Space can serve."""
        return [name for name in self.runs() if made_by(self.root / name) in SERVED]

    def is_adapter(self, run: str) -> bool:
        """True for a run that holds LoRA matrices and not a whole model."""
        return bool(run) and (existing_run(self.root, run) / "adapter_config.json").is_file()

    def read(self, asked: dict) -> tuple[Push, list[Path]]:
        """(what is asked for, the folders to share). UserError for what is not here, or not open."""
        # The page hides the tab, and a client may still call.
        if not self.jobs.allowed.may_push:
            raise Refusal("share.error.closed")
        push = read_push(asked)
        if push.kind not in self.kinds():
            raise Refusal("share.error.kind")
        # Before the runs: their names are nobody's business who may not push.
        self.jobs.allowed.check_repo(push.repo)
        if push.kind == FEEDBACK:
            return push, [Path(self.store.folder)]
        # A name that leads out of the folder of the runs is refused.
        return push, [existing_run(self.root, name) for name in push.sources]

    def preview(self, asked: dict) -> dict:
        """Files, card, notes and the command of a push. Nothing is sent.

        files: [name, bytes] each. card: README.md with its metadata.
        """
        push, folders = self.read(asked)
        if push.kind == RUN:
            content = preview_run(folders[0], push)
        else:
            content = preview_folder(folders, push)
        # The very command of the push, so that it can be repeated in a terminal.
        words = self.jobs.share_command(share_words(push, folders))
        return content | {"repo": push.repo, "command": shell_text(words, str(Path.cwd()))}

    def push(self, asked: dict) -> Job:
        """Put a push in line."""
        push, folders = self.read(asked)
        return self.jobs.share(share_words(push, folders), push.title, push.settings())

    def as_asked(self, asked: dict) -> dict:
        """The content of a preview in short: the push that was asked for, and the states in which its runs are."""
        push, folders = self.read(asked)
        # Feedback grows all the time, and every event of it was agreed to.
        states = [] if push.kind == FEEDBACK else [state_of(folder) for folder in folders]
        return asked | {"states": states}

    def push_previewed(self, asked: dict, previewed: dict | None) -> Job:
        """The same for the page. UserError where the preview is of something else.

        It may be ready after a change of the form, and a run may have been trained again since.
        """
        if previewed is None or self.as_asked(asked) != previewed:
            raise Refusal("share.error.stale")
        return self.push(asked)

    def pushes(self) -> list[dict]:
        """The newest pushes with their state, the end of their log and their address, without tokens."""
        jobs = [job for job in self.jobs.list() if job.recipe == SHARE]
        return [facts_of(job) for job in jobs[: -PUSHES_SHOWN - 1 : -1]]

    def is_live(self) -> bool:
        """True while a push waits or runs."""
        return any(job.recipe == SHARE and not job.has_ended for job in self.jobs.list())


def state_of(run: Path) -> list[str]:
    """The name, the size and the time of each file of a run's folder, but for what a push itself writes."""
    state = []
    for path in sorted(run.iterdir()):
        if path.is_file() and path.name not in WRITTEN_BY_PUSHES:
            status = path.stat()
            state.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return state


def preview_run(folder: Path, push: Push) -> dict:
    """The files and the card of a run."""
    from rlhf.hub.share import preview

    # To merge an adapter takes minutes and much memory, which the server needs for its answers.
    shown = preview(folder, push.repo)
    return {"files": [list(entry) for entry in shown.files], "card": shown.card, "notes": []}


def preview_folder(folders: Sequence[Path], push: Push) -> dict:
    """The files and the card of a data set or of a Space, which are made in a temporary folder."""
    # Links to the weights: a preview copies nothing large.
    with tempfile.TemporaryDirectory(prefix="rlhf-share-") as temporary:
        target = Path(temporary) / "folder"
        notes = []
        if push.kind == FEEDBACK:
            from rlhf.hub.feedback_data import feedback_folder

            notes = feedback_folder(folders[0], target, repo=push.repo).notes()
        else:
            from rlhf.hub.space import space_folder

            space_folder(folders, target, link=True)
        files = []
        for path in sorted(target.rglob("*")):
            if path.is_file():
                files.append([path.relative_to(target).as_posix(), path.stat().st_size])
        return {"files": files, "card": (target / "README.md").read_text("utf-8"), "notes": notes}


def facts_of(job: Job) -> dict:
    """A push as the page shows it."""
    # A push does not print its token. Should another tool do so, it stays on the server.
    log = TOKEN.sub("hf_...", read_tail(Path(job.log), LOG_SHOWN))
    urls = URL.findall(log)
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "created": job.created,
        "reason": TOKEN.sub("hf_...", job.reason),
        "log": log,
        "url": urls[-1] if urls and job.state == "done" else "",
    }


# ---- HTML ------------------------------------------------------------------------------------------------------------


def size_text(size: float) -> str:
    """A number of bytes for a reader."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def preview_html(shown: dict, is_merged: bool, language: str) -> str:
    """Notes, card, files and command of a push."""

    def say(key: str, **values) -> str:
        return escape(text(f"share.{key}", language, **values))

    notes = [escape(said(note, language)) for note in shown["notes"]]
    if is_merged:
        notes.append(say("merged"))
    notes.append(say("token"))
    items = "".join(f"<li>{note}</li>" for note in notes)
    metadata, card = parts_of(shown["card"])
    total = size_text(sum(size for _, size in shown["files"]))
    files = say("files", count=len(shown["files"]), size=total)
    return (
        f"<div class='share-report'><h4>{say('notes')}</h4><ul class='notes'>{items}</ul>"
        f"<h4>{files}</h4>{files_html(shown['files'], language)}"
        f"<h4>{say('command')}</h4><pre>{escape(shown['command'])}</pre>"
        f"<h4>{say('metadata')}</h4><pre>{escape(metadata)}</pre>"
        f"<h4>{say('card')}</h4><div class='card'>{run_view.markdown_html(card)}</div></div>"
    )


def files_html(files: list, language: str) -> str:
    """The files as a table. The code of a Space is one line of it."""
    # Two hundred files of no interest.
    code = [size for name, size in files if name.startswith(CODE)]
    rows = [(name, size) for name, size in files if not name.startswith(CODE)]
    more = len(rows) - FILES_SHOWN
    rows = rows[:FILES_SHOWN]
    if code:
        rows.append((f"{CODE} ({text('share.code', language, count=len(code))})", sum(code)))
    lines = []
    for name, size in rows:
        lines.append(f"<tr><td>{escape(name)}</td><td>{size_text(size)}</td></tr>")
    if more > 0:
        lines.append(f"<tr><td>+ {more}</td><td></td></tr>")
    return f"<table class='files'><tbody>{''.join(lines)}</tbody></table>"


def parts_of(card: str) -> tuple[str, str]:
    """(metadata, Markdown) of a card."""
    if card.startswith("---\n"):
        metadata, end, body = card[4:].partition("\n---\n")
        if end:
            return metadata, body.strip()
    return "", card.strip()


def pushes_html(pushes: list[dict], language: str) -> str:
    """The newest pushes, each with its state, and the log of one that did not end well."""
    title = escape(text("share.pushes", language))
    if not pushes:
        none = escape(text("share.none", language))
        return f"<h4>{title}</h4><p class='quiet'>{none}</p>"
    entries = []
    for push in pushes:
        url, log = escape(push["url"]), ""
        link = f"<a href='{url}' target='_blank' rel='noopener noreferrer'>{url}</a>" if url else ""
        if not push["url"] and push["log"]:
            log = f"<pre>{escape(push['log'])}</pre>"
        reason = f"<p class='wrong'>{escape(push['reason'])}</p>" if push["reason"] else ""
        entries.append(
            f"<div class='push'><span class='top'><b>{escape(push['name'])}</b>"
            f"{run_view.chip(push['state'], language)}{link}</span>{reason}{log}</div>"
        )
    return f"<div class='share-pushes' role='status'><h4>{title}</h4>{''.join(entries)}</div>"


# ---- the page --------------------------------------------------------------------------------------------------------


def build(service: Service, page: gr.Blocks) -> None:
    """Build the tab in the open block."""
    view = ShareView(service)
    tab_line("share.line")
    # A server without feedback does not offer it.
    choices = [(label(f"share.kind.{kind}"), kind) for kind in view.kinds()]
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            kind = gr.Radio(choices, value=RUN, label=label("share.kind"), elem_id="share-kind")
            run = gr.Dropdown([], label=label("share.run"), elem_id="share-run")
            models = gr.Dropdown(
                [],
                label=label("share.models"),
                multiselect=True,
                visible=False,
                elem_id="share-models",
            )
            repo = gr.Textbox(
                "",
                label=label("share.repo"),
                info=label("share.repo.help"),
                placeholder="ann/my-model",
                max_length=96,
                elem_id="share-repo",
            )
            private = gr.Checkbox(
                True, label=label("share.private"), info=label("share.private.help")
            )
            merge = gr.Checkbox(
                False, label=label("share.merge"), info=label("share.merge.help"), visible=False
            )
            pr = gr.Checkbox(False, label=label("share.pr"), info=label("share.pr.help"))
            look = gr.Button(label("share.preview"), elem_id="share-preview-button")
            push = gr.Button(
                label("share.push"), variant="primary", visible=False, elem_id="share-push"
            )
            pushes = gr.HTML("", elem_id="share-pushes")
        with gr.Column(scale=4, min_width=320):
            shown = gr.HTML("", elem_id="share-preview")
    timer = gr.Timer(TICK, active=False)
    inputs = [kind, run, models, repo, private, merge, pr]
    wire(
        view,
        page,
        inputs,
        {"look": look, "push": push, "shown": shown, "pushes": pushes, "timer": timer},
    )
    endpoints(view)


def asked_for(kind, run, models, repo, private, merge, pr) -> dict:
    """The values of the components, as `read_push` takes it."""
    # The component of the other kind may still hold a choice.
    sources = models if kind == SPACE else [run] if run else []
    return {
        "kind": kind,
        "sources": list(sources or []),
        "repo": repo or "",
        "private": private,
        "merge": merge,
        "pr": pr,
    }


def wire(view: ShareView, page: gr.Blocks, inputs: list, parts: dict) -> None:
    """Events of the tab. A push needs a preview of what is pushed: each change takes the button away."""
    kind, run, models, _, _, merge, _ = inputs
    hidden = gr.Button(visible=False)

    def opened(request: gr.Request):
        language = language_of(request)
        runs = view.runs()
        hint = "" if runs else f"<p class='quiet'>{escape(text('share.no_runs', language))}</p>"
        return [
            gr.Dropdown(choices=runs, value=runs[0] if runs else None),
            gr.Dropdown(choices=view.models()),
            gr.Checkbox(visible=bool(runs) and view.is_adapter(runs[0])),
            hint,
            pushes_html(view.pushes(), language),
            gr.Timer(active=view.is_live()),
        ]

    def changed_kind(chosen: str, name: str | None):
        # Only an adapter can be merged.
        is_run = chosen == RUN
        adapter = is_run and view.is_adapter(name or "")
        return [
            gr.Dropdown(visible=is_run),
            gr.Dropdown(visible=chosen == SPACE),
            gr.Checkbox(visible=adapter, value=False),
        ]

    def on_look(request: gr.Request, *values):
        asked = asked_for(*values)
        language = language_of(request)
        # Before the files are read: a run that changes meanwhile is not what is shown.
        previewed = view.as_asked(asked)
        report = preview_html(view.preview(asked), asked["merge"], language)
        return report, gr.Button(visible=True), previewed

    def on_push(request: gr.Request, previewed: dict | None, *values):
        job = view.push_previewed(asked_for(*values), previewed)
        language = language_of(request)
        gr.Info(escape(text("share.pushing", language, name=job.name)))
        return hidden, pushes_html(view.pushes(), language), gr.Timer(active=True)

    def tick(request: gr.Request):
        # Before the state is read: a push that ends in between is shown by the next tick.
        is_live = view.is_live()
        return pushes_html(view.pushes(), language_of(request)), gr.Timer(active=is_live)

    # Where a preview is stale, nobody may push.
    shown, push, pushes, timer = (parts[name] for name in ("shown", "push", "pushes", "timer"))
    page.load(told(opened), None, [run, models, merge, shown, pushes, timer], **QUIET)
    kind.change(told(changed_kind), [kind, run], [run, models, merge], **QUIET)
    run.change(told(changed_kind), [kind, run], [run, models, merge], **QUIET)
    for component in inputs:
        component.input(lambda: [hidden, ""], None, [push, shown], queue=False, **QUIET)
    previewed = gr.State(None)
    outputs = [shown, push, previewed]
    parts["look"].click(told(on_look), inputs, outputs, concurrency_limit=2, **QUIET)
    push.click(told(on_push), [previewed, *inputs], [push, pushes, timer], **QUIET)
    timer.tick(tick, None, [pushes, timer], **QUIET)


def endpoints(view: ShareView) -> None:
    """The actions of the tab for clients, with named parameters."""

    def share_preview(
        kind: str, repo: str, sources: list[str] | None = None, merge: bool = False
    ) -> dict:
        return view.preview({"kind": kind, "repo": repo, "sources": sources, "merge": merge})

    def share_push(
        kind: str,
        repo: str,
        sources: list[str] | None = None,
        private: bool = True,
        merge: bool = False,
        pr: bool = False,
    ) -> dict:
        asked = {"kind": kind, "repo": repo, "sources": sources}
        job = view.push(asked | {"private": private, "merge": merge, "pr": pr})
        return facts_of(job)

    def share_pushes() -> list:
        return view.pushes()

    for action in (share_preview, share_push, share_pushes):
        gr.api(told(action), api_name=action.__name__)
