"""The pieces of the Runs tab as HTML: pure functions from facts to text, with every name, sample and log escaped."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from rlhf.serving.jobs.records import RUNNING, WAITING, Job
from rlhf.serving.run_files import RunSummary
from rlhf.serving.ui.curves import short
from rlhf.serving.ui.texts import text

CSS = """
.run-list {display: flex; flex-direction: column; gap: 6px; max-height: 70vh; overflow-y: auto; padding: 2px;}
.run-list button {display: block; width: 100%; text-align: left; padding: 9px 12px; border-radius: 10px; cursor: pointer;
  border: 1px solid var(--border-color-primary); background: var(--block-background-fill);
  color: var(--body-text-color); font-weight: 400;}
.run-list button:hover {border-color: var(--primary-500);}
.run-list button[aria-pressed=true] {border-color: var(--primary-500); box-shadow: 0 0 0 1px var(--primary-500);}
.run-list button:focus-visible, .line button:focus-visible {outline: 2px solid var(--primary-500); outline-offset: 1px;}
.run-list .top, .line .top {display: flex; justify-content: space-between; gap: 8px; align-items: baseline;}
.run-list b, .line b {font-weight: 600; overflow-wrap: anywhere;}
.run-list small, .line small, .run-head small {color: var(--body-text-color-subdued); display: block;
  overflow-wrap: anywhere; font-size: 0.82rem;}
.chip {flex: none; font-size: 0.75rem; padding: 1px 8px; border-radius: 999px; white-space: nowrap;
  background: var(--neutral-200); color: var(--neutral-800);}
.dark .chip {background: var(--neutral-700); color: var(--neutral-100);}
.chip.done {background: #ccfbf1; color: #115e59;} .dark .chip.done {background: #134e4a; color: #99f6e4;}
.chip.running {background: #dbeafe; color: #1e40af;} .dark .chip.running {background: #1e3a8a; color: #bfdbfe;}
.chip.bad {background: #fee2e2; color: #991b1b;} .dark .chip.bad {background: #7f1d1d; color: #fecaca;}
.run-head h2 {margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; display: inline; margin-right: 8px;}
.run-head .numbers {display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 10px 0 0;}
.run-head .numbers div {min-width: 0;} .run-head .numbers b {display: block; font-variant-numeric: tabular-nums;}
.run-head .alarm {border-left: 3px solid #f59e0b; padding: 4px 10px; margin: 8px 0 0; overflow-wrap: anywhere;}
.run-head .problem {border-left: 3px solid #ef4444; padding: 4px 10px; margin: 8px 0 0; overflow-wrap: anywhere;
  white-space: pre-wrap;}
.line {display: flex; flex-direction: column; gap: 6px;}
.line .job {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 8px 12px;
  background: var(--block-background-fill);}
.line button {font-weight: 400; font-size: 0.9rem;
  min-height: 28px; padding: 2px 12px; border-radius: 8px; cursor: pointer; color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);}
.samples {display: flex; flex-direction: column; gap: 10px;}
.samples article {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 10px 12px;}
.samples dl {display: grid; grid-template-columns: minmax(80px, max-content) 1fr; gap: 4px 12px; margin: 0;}
.samples dt {color: var(--body-text-color-subdued); overflow-wrap: anywhere;}
.samples dd {margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;}
.run-text {overflow-wrap: anywhere;} .run-text table {border-collapse: collapse; display: block; overflow-x: auto;}
.run-text td, .run-text th {border: 1px solid var(--border-color-primary); padding: 3px 8px;}
.run-text pre, pre.log {overflow: auto; max-height: 60vh; padding: 10px 12px; border-radius: 10px; font-size: 0.8rem;
  background: var(--background-fill-secondary); white-space: pre-wrap; overflow-wrap: anywhere;}
.run-pictures img {max-width: 100%; border-radius: 8px; background: white; margin-top: 10px;}
@media (max-width: 700px) {.run-list {max-height: 40vh;}}
#run-buttons {justify-content: flex-start;} #run-buttons button {flex: 0 0 auto; width: auto; min-width: 0;}
#runs-line:not(:has(.job)) {display: none;}
.quiet {color: var(--body-text-color-subdued);}
"""

TEXT_SHOWN = 2000  # characters of one value of a sample


def escape(value) -> str:
    """Any value as text that is safe in HTML and in its attributes."""
    return html.escape(str(value), quote=True)


# ---- lists -----------------------------------------------------------------------------------------------------------


def list_html(runs: Sequence[RunSummary], selected: str, language: str) -> str:
    """The runs as buttons, the newest first."""
    if not runs:
        return f"<p class='quiet'>{escape(text('runs.none', language))}</p>"
    buttons = [run_button(run, run.name == selected, language) for run in runs]
    name = escape(text("runs.list", language))
    return f"<div class='run-list' role='group' aria-label='{name}'>{''.join(buttons)}</div>"


def run_button(run: RunSummary, is_selected: bool, language: str) -> str:
    """One run: name, status, recipe, date and its key numbers."""
    numbers = [f"{escape(name)} {number_text(value)}" for name, value in run.numbers.items()]
    facts = [escape(run.recipe), escape(date_text(run.started)), *numbers]
    shown = " · ".join(fact for fact in facts if fact)
    return (
        f"<button type='button' data-run=\"{escape(run.name)}\" aria-pressed='{str(is_selected).lower()}'>"
        f"<span class='top'><b>{escape(run.name)}</b>{chip(run.status, language)}</span><small>{shown}</small></button>"
    )


def date_text(time: str) -> str:
    """2026-11-27 20:05 of an ISO time in UTC; "" for what is none."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*", time)
    return f"{match[1]} {match[2]}" if match else ""


def chip(status: str, language: str) -> str:
    """A status as a small label, in colour and in words."""
    kinds = {"done": "done", "trained": "done", "running": "running"}
    bad = ("failed", "evaluation failed", "cut off")
    kind = "bad" if status in bad else kinds.get(status, "")
    return f"<span class='chip {kind}'>{escape(state_text(status, language))}</span>"


def state_text(status: str, language: str) -> str:
    """A status of a run or a job in the reader's language; as it is where it has no text."""
    try:
        return text(f"runs.state.{status}", language)
    except KeyError:
        return status


def line_html(jobs: Sequence[Job], failures: Sequence[Job], language: str) -> str:
    """The job that runs and those in line, each with its button, then those that failed before they were runs."""
    open_jobs = [job for job in jobs if not job.has_ended]
    running = [job for job in open_jobs if job.state == RUNNING]
    waiting = [job for job in open_jobs if job.state == WAITING]
    entries = []
    for i, job in enumerate(running + waiting):
        entries.append(job_html(job, i - len(running) + 1, language))
    entries += [failure_html(job, language) for job in failures]
    if not entries:
        return ""
    name = escape(text("runs.line", language))
    return f"<div class='line' role='group' aria-label='{name}'>{''.join(entries)}</div>"


def failure_html(job: Job, language: str) -> str:
    """A job that has ended and left no run: its state and the reason."""
    return (
        f"<div class='job'><span class='top'><b>{escape(job.name)}</b>{chip(job.state, language)}</span>"
        f"<small>{escape(job.recipe)} · {escape(job.reason)}</small></div>"
    )


def job_html(job: Job, turn: int, language: str) -> str:
    """One job with its state. turn: its number in line."""
    if job.state == WAITING:
        note, action = text("runs.turn", language, n=turn), "runs.cancel"
    elif job.stopping:
        note, action = text("runs.stopping", language), "runs.kill"
    else:
        note, action = text("runs.since", language, time=date_text(job.started)), "runs.stop"
    at_once = "true" if job.stopping else "false"
    button = escape(text(action, language))
    says = escape(f"{text(action, language)}: {job.name}")
    return (
        f"<div class='job'><span class='top'><b>{escape(job.name)}</b>{chip(job.state, language)}</span>"
        f"<span class='top'><small>{escape(job.recipe)} · {escape(note)}</small>"
        f"<button type='button' data-stop='{escape(job.id)}' data-now='{at_once}' aria-label=\"{says}\">{button}</button>"
        "</span></div>"
    )


# ---- one run ---------------------------------------------------------------------------------------------------------


def head_html(facts: dict, alarms: list[dict], job: Job | None, language: str) -> str:
    """Name, status, numbers, alarms, the error, and how to continue."""
    hours = duration(facts["seconds"])
    line = [facts["recipe"], date_text(facts["started"])]
    if facts["steps"]:
        line.append(text("runs.steps", language, n=facts["steps"]))
    if hours:
        line.append(hours)
    numbers = []
    for name, value in list(facts["metrics"].items())[:12]:
        numbers.append(
            f"<div><small>{escape(name)}</small><b>{escape(number_text(value))}</b></div>"
        )
    parts = [
        f"<h2>{escape(facts['name'])}</h2>{chip(facts['status'], language)}",
        f"<small>{escape(' · '.join(part for part in line if part))}</small>",
        f"<div class='numbers'>{''.join(numbers)}</div>",
    ]
    # The log knows more than the record of a run that was killed.
    reason = facts["error"]
    if job is not None and job.reason and job.state != "done":
        reason = job.reason
    if reason:
        parts.append(f"<p class='problem'>{escape(reason)}</p>")
    for alarm in alarms[:5]:
        message = alarm.get("message") or alarm.get("alarm") or alarm
        parts.append(f"<p class='alarm'>{escape(message)}</p>")
    if facts["continue"]:
        title = escape(text("runs.continue.how", language))
        parts.append(
            f"<details><summary>{title}</summary><pre class='log'>{escape(facts['continue'])}</pre></details>"
        )
    return f"<div class='run-head'>{''.join(parts)}</div>"


def number_text(value: float) -> str:
    """A number with three significant digits; whole ones in full."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as 45 s, 12 min or 3.4 h."""
    if not seconds:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def samples_html(rows: list[dict], language: str) -> str:
    """Samples, each with its columns."""
    if not rows:
        return f"<p class='quiet'>{escape(text('runs.no_samples', language))}</p>"
    articles = []
    for row in rows:
        cells = []
        for name, value in row.items():
            if name == "step":  # the same in all
                continue
            if isinstance(value, float):
                value = short(value)
            shown = str(value)[:TEXT_SHOWN]
            cells.append(f"<dt>{escape(name)}</dt><dd>{escape(shown)}</dd>")
        articles.append(f"<article><dl>{''.join(cells)}</dl></article>")
    return f"<div class='samples'>{''.join(articles)}</div>"


def markdown_html(source: str) -> str:
    """Markdown of a run as HTML: no HTML of its own, no pictures, and no link but to a web page."""
    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False})
    markdown.enable("table")
    markdown.disable("image")  # the browser would fetch it
    markdown.add_render_rule("link_open", _link_open)
    return f"<div class='run-text'>{markdown.render(source)}</div>"


def _link_open(renderer, tokens, i, options, env) -> str:
    """A link that opens apart and tells the other page nothing. What leads to no web page is not a link."""
    address = str(tokens[i].attrGet("href") or "")
    if not address.startswith(("http://", "https://")):
        return "<a>"
    return f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">'


def pictures_html(paths: Sequence[Path], language: str) -> str:
    """PNG files as part of the page, so that no path of this machine is an address."""
    images = []
    for path in paths:
        content = path.read_bytes()
        # Whatever its name says, only a picture becomes one.
        if content.startswith(b"\x89PNG"):
            code = base64.b64encode(content).decode()
            name = escape(path.stem.replace("_", " "))
            images.append(f"<img alt='{name}' src='data:image/png;base64,{code}'>")
    return f"<div class='run-pictures'>{''.join(images)}</div>"


def log_html(content: str, language: str) -> str:
    """The end of a log."""
    if not content.strip():
        return f"<p class='quiet'>{escape(text('runs.no_log', language))}</p>"
    return f"<pre class='log' tabindex='0'>{escape(content)}</pre>"


def settings_html(facts: dict, language: str) -> str:
    """The command and the settings that differ from their defaults."""
    rows = []
    for name, value in sorted(facts["settings"].items()):
        rows.append(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>")
    # Where it comes from is read first.
    for role, name in facts["parents"].items():
        rows.insert(0, f"<dt>{escape(role)}</dt><dd>{escape(name)}</dd>")
    command = f"<pre class='log' tabindex='0'>{escape(facts['command'])}</pre>"
    return f"{command}<div class='samples'><article><dl>{''.join(rows)}</dl></article></div>"
