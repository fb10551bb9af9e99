"""The compare tab: the same prompt and seed to two or three models, blind, then the strengths of all that were compared.

Names, seeds and scores are told after the verdict only, to the page and to API clients alike. The order on the screen is
shuffled and stored. Endpoints: compare_models, compare_ask, compare_vote,
compare_strengths.
"""

import html
import random
from collections.abc import Iterator

import gradio as gr

from rlhf.errors import UserError
from rlhf.feedback.counts import count
from rlhf.feedback.events import Comparison
from rlhf.feedback.strengths import Strength, strengths
from rlhf.serving.engine.requests import SamplingSettings
from rlhf.serving.service import Service
from rlhf.serving.ui.blind import (
    LETTERS,
    Asked,
    Blind,
    Draft,
    annotator_of,
    answers_of,
    check_models,
    check_not_empty,
    check_prompt,
    message_box,
    name_box,
    prompt_html,
    refusals,
    reveal_line,
    revealed,
    sampling,
    session_of,
    settings_of,
    shuffled,
    stored_settings,
    stream_all,
    words,
)
from rlhf.serving.ui.consent import consent_box, is_given
from rlhf.serving.ui.settings_panel import DEFAULTS
from rlhf.serving.ui.texts import label, language_of, tab_line, text

MOST = 3  # models side by side
UNDECIDED = ("tie", "both bad")


# ---- handlers -------------------------------------------------------------------------------------------------------


class Comparing:
    """The actions of the tab. Plain functions of values; the page and the endpoints only pass them on."""

    def __init__(self, service: Service):
        self.service = service
        self.blind = Blind()

    def ask(
        self,
        prompt: str,
        models: list[str] | None,
        settings: SamplingSettings,
        reward: str,
        session: str,
    ) -> Iterator[tuple[Asked, str]]:
        """Yield (the question with its growing answers, ""), at last with its name. Bad requests are refused at once.

        models: two or three labels, or none for two at random.
        """
        messages = check_prompt(prompt)
        served = list(self.service.engine.runs)
        # Nobody knows the two, not even the one who asks.
        if not models and len(served) >= 2:
            models = random.SystemRandom().sample(served, 2)
        models = check_models(self.service, models, 2, MOST)
        if reward and reward not in self.service.engine.reward_runs:
            raise UserError(f"no reward model {reward!r:.80}")
        drafts = [Draft(model, settings.seed) for model in models]
        asked = Asked(messages, drafts, shuffled(len(drafts)), stored_settings(settings), reward)
        changes = stream_all(self.service, messages, drafts, settings, session)
        return self._watch(asked, changes)

    def _watch(self, asked: Asked, changes: Iterator[None]) -> Iterator[tuple[Asked, str]]:
        for _ in changes:
            yield asked, ""
        check_not_empty(asked.drafts)
        yield asked, self.blind.add(asked)

    def vote(
        self, name: str, verdict: str, annotator: str, source: str, consent: bool = False
    ) -> tuple[Asked, dict]:
        """Store a verdict; returns what was hidden, by letter.

        verdict: "left", "right", "tie" or "both bad"; of three answers a letter. A letter is understood for two as well.
        consent: the annotator agreed that it may be published.
        """
        asked = self.blind.claim(name)
        try:
            # Everything that can be refused comes before the event is stored.
            stored = read_verdict(verdict, len(asked.drafts))
            answers = answers_of(self.service, asked)
            event = Comparison(
                asked.messages,
                answers,
                asked.shown,
                asked.settings,
                stored,
                annotator=annotator,
                source=source,
                consent=consent,
            )
            self.service.feedback.append(event)
        except BaseException:
            # The user may decide again.
            self.blind.give_back(asked)
            raise
        return asked, revealed(asked, answers)


def read_verdict(verdict: str, count: int) -> str | int:
    """The verdict as an event has it. UserError for one that does not fit the number of answers."""
    sides: dict[str, str | int] = {"A": "left", "left": "left", "B": "right", "right": "right"}
    # Three have no left and right.
    if count > 2:
        sides = {letter: i for i, letter in enumerate(LETTERS[:count])}
    if verdict in UNDECIDED:
        return verdict
    if isinstance(verdict, str) and verdict in sides:
        return sides[verdict]
    allowed = ", ".join([*sides, *UNDECIDED])
    raise UserError(f"verdict={verdict!r:.40}: give one of {allowed}")


# ---- HTML -----------------------------------------------------------------------------------------------------------


def cards(asked: Asked, language: str, *, shown: dict | None = None, verdict: str = "") -> str:
    """The answers side by side. shown: what the decision reveals, by letter."""
    parts = []
    for letter, content in asked.letters().items():
        body = words(content) if content else waiting(language)
        name = text("compare.answer", language, letter=letter)
        won = " won" if winner(verdict) == letter else ""
        foot = reveal_line(shown[letter], language) if shown else ""
        parts.append(
            f"<section class='judge-card{won}' aria-label='{name}'><span class='letter' aria-hidden='true'>{letter}</span>"
            f"{body}{foot}</section>"
        )
    return f"{prompt_html(asked.messages, language)}<div class='judge-cards'>{''.join(parts)}</div>"


def winner(verdict: str) -> str:
    """The letter of the answer that won, or ""."""
    names = {"left": "A", "right": "B"}
    letter = names.get(verdict, verdict)
    return letter if letter in LETTERS else ""


def waiting(language: str) -> str:
    return f"<div class='words waiting'>{text('compare.waiting', language)}</div>"


def strengths_html(service: Service, language: str) -> str:
    """A table of the strengths with intervals, and whether people favour the left answer."""
    events = service.feedback.all()
    rows = strengths(events)
    if not rows:
        return f"<p class='judge-note'>{text('compare.no_strengths', language)}</p>"
    heads = ("model", "comparisons", "wins", "strength")
    head = "".join(f"<th scope='col'>{text(f'compare.{name}', language)}</th>" for name in heads)
    # All bars have one scale.
    low = min(row.low for row in rows)
    high = max(row.high for row in rows)
    lines = []
    for row in rows:
        lines.append(strength_line(row, low, high))
    notes = []
    # Groups are numbered from 0.
    if rows[-1].group > 0:
        notes.append(text("compare.groups", language))
    bias = count(events).left_rate
    if bias is not None:
        share, least, most = bias
        values = {"share": f"{share:.0%}", "low": f"{least:.0%}", "high": f"{most:.0%}"}
        notes.append(text("compare.bias", language, **values))
    notes.append(text("compare.scale", language))
    foot = "".join(f"<p class='judge-note'>{note}</p>" for note in notes)
    caption = text("compare.strengths", language)
    return (
        f"<div class='judge-table'><table><caption>{caption}</caption><thead><tr>{head}<th aria-hidden='true'></th></tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table>{foot}</div>"
    )


def strength_line(row: Strength, low: float, high: float) -> str:
    """A row of the table. The bar shows the interval between the lowest and the highest of all."""
    width = (high - low) or 1.0

    def at(value: float) -> str:
        return f"{2 + 96 * (value - low) / width:.1f}"

    bar = (
        "<svg viewBox='0 0 100 18' preserveAspectRatio='none' aria-hidden='true'>"
        f"<line x1='{at(row.low)}' x2='{at(row.high)}' y1='9' y2='9' stroke='var(--primary-500)' stroke-width='3'/>"
        f"<line x1='{at(row.strength)}' x2='{at(row.strength)}' y1='3' y2='15' stroke='var(--primary-700)' "
        "stroke-width='2' vector-effect='non-scaling-stroke'/></svg>"
    )
    return (
        f"<tr><td>{html.escape(row.model)}</td><td>{row.comparisons}</td><td>{row.win_rate:.0%}</td>"
        f"<td>{row.strength:+.2f} ({row.low:+.2f} – {row.high:+.2f})</td><td class='bar'>{bar}</td></tr>"
    )


def strengths_list(service: Service) -> list[dict]:
    """The same for API clients."""
    return [dict(row.__dict__) for row in strengths(service.feedback.all())]


# ---- wiring ---------------------------------------------------------------------------------------------------------


def build(service: Service, page: gr.Blocks) -> None:
    """Build the tab."""
    comparing = Comparing(service)
    endpoints(comparing)
    tab_line("compare.line")
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=300):
            prompt = message_box(service, "compare-prompt")
            ask = gr.Button(label("compare.ask"), variant="primary", elem_id="compare-ask")
            answers = gr.HTML(elem_id="compare-answers")
            buttons = verdict_buttons()
            status = gr.HTML(elem_id="compare-status")
            table = gr.HTML(elem_id="compare-strengths")
        with gr.Column(scale=3, min_width=260):
            controls = panel(service)
            annotator = name_box(page)
            consent = consent_box(page, "compare-consent")
    # Stays on the server: the browser never has it.
    name = gr.State("")
    outputs = [answers, status, name, *buttons.values()]

    def on_ask(
        words_of_prompt, models, reward, temperature, top_p, tokens, seed, request: gr.Request
    ):
        language, session = language_of(request), session_of(request)
        settings = settings_of(temperature, top_p, tokens, seed)
        asked_for = comparing.ask(words_of_prompt, models, settings, reward or "", session)
        # The key comes with the last frame, and then the buttons can be pressed.
        for asked, key in asked_for:
            yield (
                cards(asked, language),
                hint(len(asked.drafts), language) if key else "",
                key,
                *button_updates(buttons, len(asked.drafts), active=bool(key)),
            )

    ask_page = refusals(on_ask, escape=True)
    inputs = [prompt, *controls]
    options = {"show_progress": "hidden", "concurrency_limit": 16, "api_visibility": "private"}
    asking = gr.on([ask.click, prompt.submit], ask_page, inputs, outputs, **options)
    asking.then(None, None, None, js=FOCUS)

    def on_vote(verdict: str):
        def vote(key, who, agreed, request: gr.Request):
            language = language_of(request)
            own = annotator_of(service, request, who)
            asked, shown = comparing.vote(key, verdict, own, "app", is_given(agreed))
            return (
                cards(asked, language, shown=shown, verdict=verdict),
                f"<p class='judge-hint' role='status'>{text('compare.saved', language)}</p>",
                "",
                *[gr.update(interactive=False, visible=False)] * len(buttons),
                strengths_html(service, language),
            )

        return refusals(vote, escape=True)

    for verdict, button in buttons.items():
        given = [name, annotator, consent]
        voted = button.click(on_vote(verdict), given, [*outputs, table], **options)
        voted.success(None, None, None, js=NEXT)

    def on_load(request: gr.Request):
        language = language_of(request)
        rewards = list(service.engine.reward_runs)
        enough = len(service.engine.runs) > 1
        note = "" if enough else f"<p class='judge-hint'>{text('compare.one_model', language)}</p>"
        return (
            note,
            gr.update(interactive=enough),
            strengths_html(service, language),
            gr.update(choices=list(service.engine.runs)),
            gr.update(choices=rewards, visible=bool(rewards)),
        )

    # Runs may have finished since the app started.
    loaded = [status, ask, table, *controls[:2]]
    page.load(refusals(on_load, escape=True), None, loaded, **options)
    page.load(None, None, None, js=KEYS)


def panel(service: Service) -> list:
    """Models, reward model and sampling settings, in the order of `on_ask`."""
    names = list(service.engine.runs)
    models = gr.Dropdown(
        names,
        value=names[:2],
        multiselect=True,
        max_choices=MOST,
        label=label("judge.models"),
        info=label("compare.models_info"),
    )
    rewards = list(service.engine.reward_runs)
    reward = gr.Dropdown(rewards, value=None, label=label("judge.reward"), visible=bool(rewards))
    return [models, reward, *sampling(service)]


def verdict_buttons() -> dict[str, gr.Button]:
    """Verdict -> button. Those of the letters are for three answers."""
    buttons = {}
    with gr.Row(elem_classes="verdicts"):
        for verdict, key in VERDICTS.items():
            buttons[verdict] = gr.Button(
                label(f"compare.{key}"),
                elem_id=f"compare-{key}",
                interactive=False,
                visible=False,  # until there is something to decide
                min_width=90,
            )
    return buttons


VERDICTS = {
    "left": "left",
    "A": "a",
    "B": "b",
    "C": "c",
    "tie": "tie",
    "both bad": "bad",
    "right": "right",
}


def button_updates(buttons: dict, answers: int, *, active: bool) -> list[dict]:
    """Updates of the buttons: those for so many answers are visible, and can be pressed if `active`."""
    updates = []
    for verdict in buttons:
        # Left and right for two answers, letters for three.
        fits = verdict in UNDECIDED or (verdict in ("left", "right")) == (answers == 2)
        updates.append(gr.update(interactive=active and fits, visible=fits))
    return updates


def hint(answers: int, language: str) -> str:
    key = "compare.keys" if answers == 2 else "compare.keys3"
    return f"<p class='judge-hint' role='status'>{text(key, language)}</p>"


def endpoints(comparing: Comparing) -> None:
    """The endpoints for clients. Their answers are dictionaries."""
    service = comparing.service

    def compare_ask(
        prompt: str,
        models: list[str] | None = None,
        reward_model: str = "",
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        max_new_tokens: int = DEFAULTS.max_new_tokens,
        seed: int | None = None,
        request: gr.Request = None,
    ) -> dict:
        """Ask two or three models (none: two at random). Returns their answers by letter, and a name to vote with."""
        settings = settings_of(temperature, top_p, max_new_tokens, seed)
        session = session_of(request)
        asked, name = None, ""
        # An API client gets the whole answers.
        for asked, name in comparing.ask(prompt, models, settings, reward_model, session):  # noqa: B007
            pass
        return {"comparison": name, "answers": asked.letters()}

    def compare_vote(
        comparison: str,
        verdict: str,
        annotator: str = "",
        consent: bool = False,
        request: gr.Request = None,
    ) -> dict:
        """Decide: A or left, B or right, C, tie, both bad. Returns the models, seeds and scores by letter.

        consent: true if the annotator agreed that it may be published.
        """
        own = annotator_of(service, request, annotator)
        _, shown = comparing.vote(comparison, verdict, own, "api", is_given(consent))
        return {"models": shown}

    def compare_strengths() -> list[dict]:
        """Bradley-Terry strengths of all compared models, with 95 % intervals."""
        return strengths_list(service)

    def compare_models() -> dict:
        """The labels of the served models and reward models."""
        return {
            "models": list(service.engine.runs),
            "reward_models": list(service.engine.reward_runs),
        }

    gr.api(refusals(compare_models, escape=False), api_name="compare_models")
    gr.api(refusals(compare_ask, escape=False), api_name="compare_ask", concurrency_limit=16)
    gr.api(refusals(compare_vote, escape=False), api_name="compare_vote", concurrency_limit=16)
    gr.api(refusals(compare_strengths, escape=False), api_name="compare_strengths")


# From the message to the verdict, unless the user went elsewhere meanwhile.
FOCUS = """
() => {
  const active = document.activeElement;
  if (active && active !== document.body && !active.closest("#compare-prompt, #compare-ask")) return;
  for (const name of ["left", "a"]) {
    const button = document.getElementById("compare-" + name);
    if (button && button.offsetParent && !button.disabled) button.focus({preventScroll: true});
  }
}
"""
# The buttons are gone after the verdict: the next thing to do is the next message.
NEXT = """
() => {
  const box = document.querySelector("#compare-prompt textarea");
  if (!box || !window.matchMedia("(pointer: fine)").matches) return;
  box.focus({preventScroll: true});
  box.select();
}
"""
# Keys are for the page, not for text boxes, lists and the row of tabs.
KEYS = """
() => {
  if (window.rlhfCompareKeys) return;
  window.rlhfCompareKeys = true;
  const keys = {
    ArrowLeft: ["left", "a"], ArrowRight: ["right"], 1: ["left", "a"], 2: ["right", "b"], 3: ["c"],
    0: ["tie"], t: ["tie"], T: ["tie"], x: ["bad"], X: ["bad"],
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !(event.key in keys)) return;
    if (event.target.closest("input, textarea, select, [contenteditable], [role=listbox], [role=tablist]")) return;
    for (const name of keys[event.key]) {
      const button = document.getElementById("compare-" + name);
      if (button && button.offsetParent && !button.disabled) {
        event.preventDefault();
        button.click();
        return;
      }
    }
  });
}
"""

TEXTS = {
    "compare.tab": ("Compare", "비교"),
    "compare.ask": ("Ask", "질문하기"),
    "compare.answer": ("Answer {letter}", "답변 {letter}"),
    "compare.waiting": ("…", "…"),
    "compare.models_info": (
        "Two or three. With none, two at random.",
        "둘 또는 셋. 비워 두면 무작위로 둘을 고릅니다.",
    ),
    "compare.left": ("◀ A is better", "◀ A가 낫다"),
    "compare.right": ("B is better ▶", "B가 낫다 ▶"),
    "compare.a": ("A is best", "A가 최고"),
    "compare.b": ("B is best", "B가 최고"),
    "compare.c": ("C is best", "C가 최고"),
    "compare.tie": ("Tie", "비슷하다"),
    "compare.bad": ("All bad", "모두 나쁘다"),
    "compare.keys": (
        "Which answer is better? <span class='keys'>Keys: <kbd>←</kbd> or <kbd>1</kbd> for A, <kbd>→</kbd> or <kbd>2</kbd> "
        "for B, <kbd>0</kbd> or <kbd>T</kbd> for a tie, <kbd>X</kbd> if both are bad.</span>",
        "어느 답변이 더 나은가요? <span class='keys'>키: A는 <kbd>←</kbd> 또는 <kbd>1</kbd>, B는 <kbd>→</kbd> 또는 "
        "<kbd>2</kbd>, 비슷하면 <kbd>0</kbd> 또는 <kbd>T</kbd>, 둘 다 나쁘면 <kbd>X</kbd>.</span>",
    ),
    "compare.keys3": (
        "Which answer is best? <span class='keys'>Keys: <kbd>1</kbd>, <kbd>2</kbd>, <kbd>3</kbd> for A, B, C, <kbd>0</kbd> "
        "or <kbd>T</kbd> for a tie, <kbd>X</kbd> if all are bad.</span>",
        "어느 답변이 가장 나은가요? <span class='keys'>키: A, B, C는 <kbd>1</kbd>, <kbd>2</kbd>, <kbd>3</kbd>, 비슷하면 "
        "<kbd>0</kbd> 또는 <kbd>T</kbd>, 모두 나쁘면 <kbd>X</kbd>.</span>",
    ),
    "compare.line": (
        "Ask a question, read the answers without knowing whose they are, and choose the better one. Then you see the "
        "names.",
        "질문하고, 어느 모델인지 모르는 채 답변을 읽은 뒤 더 나은 것을 고르세요. 고르면 모델 이름이 보입니다.",
    ),
    "compare.one_model": (
        "A comparison needs two models, and one is here: train or give another.",
        "비교하려면 모델이 두 개 필요한데 하나뿐입니다. 모델을 하나 더 학습하거나 추가하세요.",
    ),
    "compare.saved": ("Saved. Ask the next question.", "저장했습니다. 다음 질문을 해 보세요."),
    "compare.strengths": ("Strengths of the compared models", "비교한 모델의 강도"),
    "compare.no_strengths": (
        "No comparison yet. After the first, the strengths of the models are here.",
        "아직 비교가 없습니다. 첫 비교 후 모델의 강도가 여기에 표시됩니다.",
    ),
    "compare.model": ("Model", "모델"),
    "compare.comparisons": ("Comparisons", "비교 수"),
    "compare.wins": ("Wins, ties half", "승률(무승부 0.5)"),
    "compare.strength": ("Strength (95 % interval)", "강도 (95 % 구간)"),
    "compare.groups": (
        "Some models never met, neither directly nor through others: only strengths of one group can be compared.",
        "서로 만난 적이 없는 모델이 있습니다. 같은 그룹의 강도만 비교할 수 있습니다.",
    ),
    "compare.bias": (
        "The left answer won {share} of the decided comparisons ({low} to {high}); 50 % means no bias.",
        "결정된 비교 중 왼쪽 답변이 이긴 비율: {share} ({low}–{high}). 50 %이면 치우침이 없습니다.",
    ),
    "compare.scale": (
        "Bradley-Terry, on the scale of log-odds: 1 above another wins about 73 % of the time.",
        "브래들리-테리 모형, 로그 오즈 척도: 1만큼 높으면 약 73 % 확률로 이깁니다.",
    ),
}
CSS = ""
