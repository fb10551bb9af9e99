"""The ladder tab: one question, answered by every rung from n-gram to PPO, with its year, paper and numbers.

The numbers are those of the newest ladder.json under the folder of the runs, which `make ladder` writes. Rungs that are not
served any more keep their numbers and give no answer. Endpoint: ladder_ask.
"""

import html
import json
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from rlhf.errors import UserError
from rlhf.runs.folders import LADDER
from rlhf.serving.engine.requests import SamplingSettings
from rlhf.serving.service import Service
from rlhf.serving.ui.blind import (
    check_prompt,
    message_box,
    readable,
    refusals,
    sample_patiently,
    session_of,
    settings_of,
)
from rlhf.serving.ui.texts import label, language_of, tab_line, text

TEMPERATURE = 0.5  # as `rlhf ladder` measures
MAX_NEW_TOKENS = 32

TEXTS = {
    "ladder.line": (
        "One question to every step of the road: n-gram, neural networks, the Transformer, and what people's rankings add.",
        "n-gram부터 신경망, 트랜스포머, 사람의 순위 평가까지, 모든 단계에 같은 질문을 해 보세요.",
    ),
    "ladder.ask": ("Ask every rung", "모든 단계에 묻기"),
    "ladder.waiting": ("…", "…"),
    "ladder.gone": (
        "This model is not in the folder of the runs.",
        "이 모델은 학습 폴더에 없습니다.",
    ),
    "ladder.bits": ("{bits} bits per byte", "바이트당 {bits}비트"),
    "ladder.learned": ("{count} learned numbers", "학습된 수 {count}개"),
    "ladder.seconds": ("{seconds} s of training", "학습 {seconds}초"),
    "ladder.none": (
        "There is no ladder in {runs} yet: `make ladder` trains and measures every rung.",
        "{runs}에 아직 사다리가 없습니다. `make ladder`로 모든 단계를 학습하고 측정하세요.",
    ),
}
CSS = """
.rungs {display: grid; gap: 10px; margin: 6px 0 0; padding: 0; list-style: none;}
.rungs li {display: grid; grid-template-columns: minmax(120px, 200px) 1fr; gap: 4px 18px; padding: 12px 16px;
  border: 1px solid var(--border-color-primary); border-radius: 12px; background: var(--block-background-fill);}
.rungs b {display: block; font-size: 1.02rem; overflow-wrap: anywhere;}
.rungs .year {font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); font-size: 0.85rem;}
.rungs .words {white-space: pre-wrap; overflow-wrap: anywhere; min-height: 1.5em;}
.rungs small {grid-column: 2; color: var(--body-text-color-subdued); font-size: 0.82rem; overflow-wrap: anywhere;}
@media (max-width: 640px) {.rungs li {grid-template-columns: 1fr;} .rungs small {grid-column: 1;}}
"""


def find_ladder(root: Path) -> Path | None:
    """The newest ladder.json in the folder of the runs or in a folder of it."""
    files = [*root.glob(LADDER), *root.glob(f"*/{LADDER}")]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


class Ladder:
    """The actions of the tab. Plain functions of values; the page and the endpoint only pass them on."""

    def __init__(self, service: Service):
        self.service = service

    def rungs(self) -> list[dict]:
        """The rungs of ladder.json, each with the label of its served model or "". UserError where there is none."""
        path = find_ladder(self.service.runs)
        if path is None:
            raise UserError(text("ladder.none", "en", runs=self.service.runs))
        try:
            rungs = json.loads(path.read_text(encoding="utf-8"))["rungs"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read: run `make ladder` again") from error
        served = {}
        for name, folder in self.service.engine.runs.items():
            served[Path(folder).resolve()] = name
        for rung in rungs:
            rung["model"] = served.get(Path(rung["path"]).resolve(), "")
        return rungs

    def ask(self, prompt: str, settings: SamplingSettings, session: str) -> Iterator[list[dict]]:
        """Yield the rungs after each answer, which is under "answer"; None while it is awaited, "" of one that is gone."""
        messages = check_prompt(prompt)
        rungs = self.rungs()
        for rung in rungs:
            rung["answer"] = None if rung["model"] else ""
        yield rungs
        # One after another: eleven models at once would wait for each other.
        for rung in rungs:
            if not rung["model"]:
                continue
            name = f"{session}-ladder"
            try:
                [completion] = sample_patiently(
                    self.service, rung["model"], messages, settings, name, session
                )
                rung["answer"] = readable(completion.text)
            except UserError as error:  # such as a question longer than this model's context
                rung["answer"] = f"({error})"
            yield rungs


# ---- HTML -----------------------------------------------------------------------------------------------------------


def rungs_html(rungs: list[dict], language: str) -> str:
    """A list of the rungs with their answers, if any was asked for."""
    lines = [rung_html(rung, language) for rung in rungs]
    return f"<ol class='rungs'>{''.join(lines)}</ol>"


def rung_html(rung: dict, language: str) -> str:
    answer = rung.get("answer", "")
    words = html.escape(answer) if answer else ""
    if answer is None:
        words = text("ladder.waiting", language)
    elif not rung["model"]:
        words = text("ladder.gone", language)
    facts = " · ".join([html.escape(rung["paper"]), *facts_of(rung, language)])
    return (
        f"<li><div><b>{html.escape(rung['name'])}</b><span class='year'>{rung['year']}</span></div>"
        f"<div class='words'>{words}</div><small>{facts}</small></li>"
    )


def facts_of(rung: dict, language: str) -> list[str]:
    """The numbers of a rung, in words."""
    facts = []
    if rung["bits_per_byte"] is not None:
        facts.append(text("ladder.bits", language, bits=f"{rung['bits_per_byte']:.3f}"))
    for name, rate in rung["rates"].items():
        shown = html.escape(name.removeprefix("score_").replace("_", " "))
        number = f"{rate['mean']:.1f}"
        if name in rung["per_cent"]:
            number = f"{rate['mean']:.0%}"
        facts.append(f"{shown} {number}")
    facts.append(text("ladder.learned", language, count=f"{rung['parameters']:,}"))
    facts.append(text("ladder.seconds", language, seconds=f"{rung['seconds']:.0f}"))
    return facts


# ---- wiring ---------------------------------------------------------------------------------------------------------


def build(service: Service, page: gr.Blocks) -> None:
    """Build the tab."""
    ladder = Ladder(service)
    tab_line("ladder.line")
    prompt = message_box(service, "ladder-prompt")
    ask = gr.Button(label("ladder.ask"), variant="primary", elem_id="ladder-ask")
    shown = gr.HTML(elem_id="ladder-rungs")

    def on_ask(words: str, request: gr.Request):
        language = language_of(request)
        settings = settings_of(TEMPERATURE, 1.0, MAX_NEW_TOKENS, None)
        for rungs in ladder.ask(words, settings, session_of(request)):
            yield rungs_html(rungs, language)

    options = {"show_progress": "hidden", "concurrency_limit": 16, "api_visibility": "private"}
    gr.on([ask.click, prompt.submit], refusals(on_ask, escape=True), prompt, shown, **options)

    def on_load(request: gr.Request):
        language = language_of(request)
        if find_ladder(service.runs) is None:
            return f"<p class='judge-hint'>{html.escape(text('ladder.none', language, runs=service.runs))}</p>"
        return rungs_html(ladder.rungs(), language)

    page.load(refusals(on_load, escape=True), None, shown, **options)

    def ladder_ask(
        prompt: str,
        temperature: float = TEMPERATURE,
        seed: int | None = None,
        request: gr.Request = None,
    ) -> list[dict]:
        """Ask every rung of the ladder. Returns them with year, paper, numbers and answer ("": no longer served)."""
        rungs: list[dict] = []
        settings = settings_of(temperature, 1.0, MAX_NEW_TOKENS, seed)
        for rungs in ladder.ask(prompt, settings, session_of(request)):  # noqa: B007
            pass
        return rungs

    gr.api(refusals(ladder_ask, escape=False), api_name="ladder_ask", concurrency_limit=16)
