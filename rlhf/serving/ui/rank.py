"""The rank tab: put 2 to 9 answers to a prompt into tiers, with ties, by keyboard or by click.

Prompts are typed, or come from a queue in the feedback folder that several people work through. Answers are of one or
several models, each with a seed of its own, in a shuffled order, and their models are told after the ranking only.
Endpoints: rank_ask, rank_next, rank_submit, rank_skip, rank_add, rank_overlap, rank_status.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

import gradio as gr

from rlhf.errors import UserError
from rlhf.feedback.agreement import agreement
from rlhf.feedback.counts import count
from rlhf.feedback.events import Answer, Ranking
from rlhf.feedback.queue import MAX_FILE, Item, Overlap, Progress, Queue, read_prompts
from rlhf.serving.engine.requests import SamplingSettings
from rlhf.serving.service import Service
from rlhf.serving.ui.blind import (
    Asked,
    Blind,
    Draft,
    annotator_of,
    answers_of,
    check_models,
    check_prompt,
    message_box,
    name_box,
    prompt_html,
    refusals,
    reveal_line,
    revealed,
    sample_different,
    sampling,
    session_of,
    settings_of,
    shuffled,
    stored_settings,
    words,
)
from rlhf.serving.ui.consent import consent_box, is_given
from rlhf.serving.ui.rank_look import CSS, FOCUS, NEXT, SCRIPT, TEXTS
from rlhf.serving.ui.settings_panel import DEFAULTS
from rlhf.serving.ui.texts import label, language_of, tab_line, text

__all__ = ["CSS", "TEXTS", "build"]
LEAST, MOST = 2, 9  # answers
USUAL = 4


# ---- handlers -------------------------------------------------------------------------------------------------------


class Ranked:
    """A stored ranking. shown: what was hidden, by letter. event: as it was stored."""

    def __init__(self, asked: Asked, shown: dict[str, dict], event: Ranking):
        self.asked = asked
        self.shown = shown
        self.event = event


class RankingTab:
    """The actions of the tab. Plain functions of values; the page and the endpoints only pass them on."""

    def __init__(self, service: Service):
        self.service = service
        self.blind = Blind()
        self.queue = Queue(service.feedback)

    def ask(
        self,
        messages: list[dict],
        models: list[str],
        number,
        settings: SamplingSettings,
        session: str,
    ) -> Iterator[tuple[int, Asked | None]]:
        """Yield (answers so far, None), at last (number of answers, the question). Bad requests are refused at once."""
        models = check_models(self.service, models, 1, MOST)
        # A slider sends floats.
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if type(number) is not int or not LEAST <= number <= MOST:
            raise UserError(f"count={number!r:.20}: ask for {LEAST} to {MOST} answers")
        if settings.temperature == 0 and number > len(models):
            raise UserError(
                f"count={number}: at temperature 0 each model has one answer: raise temperature, or ask for {len(models)}"
            )
        drafts = sample_different(self.service, messages, models, number, settings, session)
        return self._watch(messages, drafts, stored_settings(settings))

    def _watch(self, messages, drafts, settings: dict) -> Iterator[tuple[int, Asked | None]]:
        final: list[Draft] = []
        for final in drafts:  # noqa: B007
            yield len(final), None
        yield len(final), Asked(messages, final, shuffled(len(final)), settings)

    def next(
        self, annotator: str, models: list[str], number, settings: SamplingSettings, session: str
    ) -> Iterator[tuple[int, Asked | None]]:
        """The next prompt of the queue with answers, as `ask`. Of a shared prompt everybody gets the same answers."""
        if not annotator:
            raise UserError(
                "the queue is for people with a name, so that nobody gets a prompt twice: enter yours"
            )
        item = self.queue.next(annotator)
        if item is None:
            raise UserError(
                "no prompt of the queue is left for you: add a file of prompts, or wait for those that others have open"
            )
        # From the first of its annotators.
        kept = self.queue.answers(item.id)
        if kept is not None:
            return iter([(len(kept["drafts"]), self._kept(item, kept))])
        return self._of_item(item, self.ask(item.messages, models, number, settings, session))

    def _of_item(self, item: Item, steps: Iterator) -> Iterator[tuple[int, Asked | None]]:
        for done, asked in steps:
            if asked is not None:
                # So that the ranking counts for the queue.
                asked.item = item.id
                if self.queue.needs(item.id) > 1:
                    drafts = [asdict(draft) for draft in asked.drafts]
                    content = {"drafts": drafts, "settings": asked.settings}
                    # Somebody else may have been first.
                    asked = self._kept(item, self.queue.keep_answers(item.id, content))
            yield done, asked

    def _kept(self, item: Item, content: dict) -> Asked:
        drafts = [Draft(**draft) for draft in content["drafts"]]
        return Asked(
            item.messages, drafts, shuffled(len(drafts)), content["settings"], item=item.id
        )

    def submit(
        self,
        name: str,
        tiers: list[int],
        written: str,
        annotator: str,
        source: str,
        consent: bool = False,
    ) -> Ranked:
        """Store a ranking. tiers: of the answers in their order on the screen, 1 is the best.

        written: an answer that the annotator would have given, which is above all others; "" for none.
        consent: the annotator agreed that it may be published.
        """
        asked = self.blind.claim(name)
        try:
            # Tiers are in the order on the screen, ranks in that of the answers.
            ranks = ranks_of(tiers, asked.shown)
            answers = answers_of(self.service, asked)
            shown = revealed(asked, answers)
            answers, ranks = with_written(answers, ranks, written)
            # An own answer was not on the screen; it comes last.
            order = [*asked.shown, *range(len(asked.shown), len(answers))]
            event = Ranking(
                asked.messages,
                answers,
                order,
                asked.settings,
                ranks,
                annotator=annotator,
                source=source,
                item=asked.item,
                consent=consent,
            )
            self.service.feedback.append(event)
        except BaseException:
            self.blind.give_back(asked)
            raise
        self.queue.release(asked.item, annotator)
        return Ranked(asked, shown, event)

    def skip(self, name: str, annotator: str) -> None:
        """Drop a question. A prompt of the queue does not come back to this annotator.

        name: "" for a prompt of the queue to which the models gave too few different answers.
        """
        if not name:
            item = self.queue.open_for(annotator)
            if item is None:
                raise UserError("no prompt of the queue is open for you: ask for the next one")
            self.queue.skip(item, annotator)
            return
        asked = self.blind.claim(name)
        # A typed prompt is only dropped.
        if asked.item:
            self.queue.skip(asked.item, annotator)

    def status(self, annotator: str) -> dict:
        """Progress through the queue, and the agreement of all annotators."""
        events = self.service.feedback.all()
        counts = count(events)
        return {
            "queue": asdict(self.queue.progress(annotator)),
            "overlap": asdict(self.queue.overlap),
            "rankings": counts.kinds.get("ranking", 0),
            "annotators": len([who for who in counts.annotators if who]),
            "tie_rate": counts.tie_rate,
            "agreement": asdict(agreement(events)),
        }


def ranks_of(tiers: list[int], shown: list[int]) -> list[int]:
    """Ranks from 0 without gaps, in the order of the answers, from tiers in the order on the screen."""
    fits = isinstance(tiers, list) and len(tiers) == len(shown)
    if not fits or not all(type(tier) is int and 1 <= tier <= MOST for tier in tiers):
        missing = "a tier from 1 (the best) is needed for each answer"
        raise UserError(f"{missing}: {len(shown)} whole numbers, {tiers!r:.60} given")
    # Tiers 2, 2, 5 are ranks 0, 0, 1.
    order = sorted(set(tiers))
    ranks = [0] * len(shown)
    for position, tier in enumerate(tiers):
        ranks[shown[position]] = order.index(tier)
    return ranks


def with_written(
    answers: list[Answer], ranks: list[int], written: str
) -> tuple[list[Answer], list[int]]:
    """The answers and ranks with the annotator's own answer, which is better than all that were shown."""
    written = written.strip()
    if not written:
        return answers, ranks
    if len(written) > 32_000:
        raise UserError(f"written: {len(written)} characters, at most 32000 are allowed")
    for i, answer in enumerate(answers):
        # Typed or copied from an answer that was shown.
        if answer.text == written:
            if ranks[i] == 0 and ranks.count(0) == 1:
                return answers, ranks
            raise UserError(
                f"written: the same text as answer {i + 1}: put that one into tier 1 alone"
            )
    return [*answers, Answer(written, None)], [rank + 1 for rank in ranks] + [0]


# ---- HTML -----------------------------------------------------------------------------------------------------------


def ranking_html(asked: Asked, language: str) -> str:
    """The answers as cards that can be focused, each with radio buttons for its tier."""
    letters = asked.letters()
    parts = []
    for letter, content in letters.items():
        choices = []
        for tier in range(1, len(letters) + 1):
            name = text("rank.tier_of", language, letter=letter, tier=tier)
            choices.append(
                f"<label><input type='radio' name='tier-{letter}' value='{tier}' aria-label='{name}'>"
                f"<span aria-hidden='true'>{tier}</span></label>"
            )
        name = text("compare.answer", language, letter=letter)
        parts.append(
            f"<section class='judge-card rank-card' tabindex='0' role='group' aria-label='{name}' data-letter='{letter}'>"
            f"<span class='letter' aria-hidden='true'>{letter}</span>{words(content)}"
            f"<div class='tiers' role='radiogroup' aria-label='{text('rank.tier', language, letter=letter)}'>"
            f"{''.join(choices)}</div></section>"
        )
    order = f"<p class='rank-order' role='status' aria-live='polite'>{text('rank.no_order', language)}</p>"
    return f"{prompt_html(asked.messages, language)}<div class='judge-cards rank-cards'>{''.join(parts)}</div>{order}"


def ranked_html(ranked: Ranked, language: str) -> str:
    """The answers in the order they were put into, with their models."""
    parts = []
    shown, event = ranked.shown, ranked.event
    letters = list(ranked.asked.letters())
    # In the order on the screen, then sorted by rank.
    for position, i in enumerate(event.shown):
        answer = event.answers[i]
        if answer.model is None:
            name, foot = "✎", f"<div class='reveal'>{text('rank.yours', language)}</div>"
        else:
            name = letters[position]
            foot = reveal_line(shown[name], language)
        rank = event.ranks[i]
        won = " won" if rank == 0 else ""
        card = (
            f"<section class='judge-card{won}'><span class='letter'>{name}</span>{words(answer.text)}"
            f"<div class='reveal'>{text('rank.tier_is', language, tier=rank + 1)}</div>{foot}</section>"
        )
        parts.append((rank, position, card))
    cards = "".join(card for _, _, card in sorted(parts))
    return (
        f"{prompt_html(event.messages, language)}<div class='judge-cards'>{cards}</div>"
        f"<p class='judge-hint' role='status'>{text('rank.saved', language)}</p>"
    )


def status_html(status: dict, language: str) -> str:
    """Progress and agreement in a few lines."""
    progress = Progress(**status["queue"])
    lines = []
    if progress.prompts:
        lines.append(text("rank.progress", language, **asdict(progress)))
        width = 100 * progress.done / progress.prompts
        lines.append(
            f"<span class='rank-bar' role='img' aria-label='{width:.0f} %'><span style='width:{width:.1f}%'></span></span>"
        )
    else:
        lines.append(text("rank.no_queue", language))
    lines.append(text("rank.rankings", language, **status))
    result = status["agreement"]
    # Nobody ranked the same answers as somebody else.
    if result["alpha"] is None:
        lines.append(text("rank.no_agreement", language))
    else:
        interval = ""
        if result["low"] is not None:
            interval = f" ({result['low']:.2f} – {result['high']:.2f})"
        values = result | {"alpha": f"{result['alpha']:.2f}", "interval": interval}
        values["same"] = f"{result['same']:.0%}"
        lines.append(text("rank.agreement", language, **values))
    return "".join(f"<p class='judge-note'>{line}</p>" for line in lines)


# ---- wiring ---------------------------------------------------------------------------------------------------------


def build(service: Service, page: gr.Blocks) -> None:
    """Build the tab."""
    tab = RankingTab(service)
    endpoints(tab)
    tab_line("rank.line")
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=300):
            prompt = message_box(service, "rank-prompt")
            with gr.Row():
                ask = gr.Button(label("rank.ask"), variant="primary", elem_id="rank-ask")
                following = gr.Button(label("rank.next"), elem_id="rank-next")
            answers = gr.HTML(elem_id="rank-answers")
            written = gr.Textbox(
                label=label("rank.written"),
                lines=1,
                max_lines=6,
                visible=False,
                elem_id="rank-written",
            )
            hint = gr.HTML(elem_id="rank-hint")
            with gr.Row(elem_classes="verdicts"):
                submit = gr.Button(
                    label("rank.submit"),
                    variant="primary",
                    visible=False,  # until there is something to rank
                    elem_id="rank-submit",
                )
                skip = gr.Button(label("rank.skip"), visible=False, elem_id="rank-skip")
        with gr.Column(scale=3, min_width=260):
            annotator = name_box(page)
            consent = consent_box(page, "rank-consent")
            models, number, *controls = panel(service)
            status = gr.HTML(elem_id="rank-status")
            add, share = queue_panel(tab)
    name = gr.State("")
    tiers = gr.Textbox("", visible=False)  # filled by the browser when the ranking is submitted
    outputs = [answers, hint, name, written, submit, skip]
    options = {"show_progress": "hidden", "concurrency_limit": 16, "api_visibility": "private"}

    def show(steps: Iterator, total: int, language: str):
        for done, asked in steps:
            # Still being written.
            if asked is None:
                note = text("rank.writing", language, done=done, total=int(total))
                frame = (f"<p class='judge-hint' role='status'>{note}</p>", "", "")
                yield (*frame, gr.update(visible=False), *idle())
            else:
                note = f"<p class='judge-hint'>{text('rank.keys', language)}</p>"
                frame = (ranking_html(asked, language), note, tab.blind.add(asked))
                active = [gr.update(visible=True), gr.update(visible=True)]
                yield (*frame, gr.update(visible=True, value=""), *active)

    def on_ask(
        words_of_prompt, labels, total, temperature, top_p, tokens, seed, request: gr.Request
    ):
        settings = settings_of(temperature, top_p, tokens, seed)
        messages = check_prompt(words_of_prompt)
        steps = tab.ask(messages, labels, total, settings, session_of(request))
        yield from show(steps, total, language_of(request))

    def on_next(who, labels, total, temperature, top_p, tokens, seed, request: gr.Request):
        settings = settings_of(temperature, top_p, tokens, seed)
        own = annotator_of(service, request, who)
        steps = tab.next(own, labels, total, settings, session_of(request))
        yield from show(steps, total, language_of(request))

    def on_submit(chosen, own_answer, who, agreed, key, request: gr.Request):
        language = language_of(request)
        own = annotator_of(service, request, who)
        tiers = read_tiers(chosen)
        ranked = tab.submit(key, tiers, own_answer, own, "app", is_given(agreed))
        frame = (ranked_html(ranked, language), "", "", gr.update(visible=False, value=""))
        return (*frame, *idle(), status_html(tab.status(own), language))

    def on_skip(who, key, request: gr.Request):
        own = annotator_of(service, request, who)
        tab.skip(key, own)
        frame = ("", "", "", gr.update(visible=False, value=""))
        return (*frame, *idle(), status_html(tab.status(own), language_of(request)))

    def on_status(who, request: gr.Request):
        return status_html(tab.status(annotator_of(service, request, who)), language_of(request))

    def on_add(content, file_name, overlap, who, request: gr.Request):
        tab.queue.set_overlap(Overlap(overlap / 100, tab.queue.overlap.people))
        # The button also saves the share alone.
        if content:
            tab.queue.add(read_prompts(content.encode(), file_name))
        return on_status(who, request)

    def wire(event, function, inputs, results, **more):
        return event(refusals(function, escape=True), inputs, results, **options, **more)

    asking = [annotator, models, number, *controls]
    gr.on(
        [ask.click, prompt.submit],
        refusals(on_ask, escape=True),
        [prompt, *asking[1:]],
        outputs,
        **options,
    ).then(None, None, None, js=FOCUS)
    wire(following.click, on_next, asking, outputs).then(None, None, None, js=FOCUS)
    # The browser replaces the first value by the tiers that were chosen.
    collect = "(tiers, ...rest) => [window.rlhfTiers ? window.rlhfTiers() : '', ...rest]"
    given = [tiers, written, annotator, consent, name]
    saved = wire(submit.click, on_submit, given, [*outputs, status], js=collect)
    skipped = wire(skip.click, on_skip, [annotator, name], [*outputs, status])
    saved.success(None, None, None, js=NEXT)
    skipped.success(None, None, None, js=NEXT)
    wire(annotator.blur, on_status, [annotator], [status])
    content, file_name = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
    read = "async (content, name, ...rest) => [...(await window.rlhfPromptFile()), ...rest]"
    wire(add.click, on_add, [content, file_name, share, annotator], [status], js=read)
    page.load(refusals(on_status, escape=True), [annotator], status, **options)
    page.load(lambda: gr.update(choices=list(service.engine.runs)), None, models, **options)
    page.load(None, None, None, js=SCRIPT.replace("MAX_FILE", str(MAX_FILE)))


def idle() -> list[dict]:
    """Submit and skip while there is nothing to rank."""
    return [gr.update(visible=False), gr.update(visible=False)]


def panel(service: Service) -> list:
    """Models, number of answers and sampling settings, in the order of `on_next`."""
    names = list(service.engine.runs)
    models = gr.Dropdown(
        names, value=names[:1], multiselect=True, max_choices=MOST, label=label("judge.models")
    )
    number = gr.Slider(LEAST, MOST, USUAL, step=1, label=label("rank.count"))
    return [models, number, *sampling(service)]


def queue_panel(tab: RankingTab) -> tuple[gr.Button, gr.Slider]:
    """The button that adds a file of prompts, and the share of prompts that several people rank."""
    with gr.Accordion(label("rank.queue"), open=False):
        gr.HTML(
            "<label class='prompt-file'><span class='sr-only'>prompts .txt / .jsonl</span>"
            "<input type='file' id='rank-file' accept='.txt,.jsonl' aria-label='prompts .txt / .jsonl'></label>"
        )
        share = gr.Slider(
            0,
            100,
            round(100 * tab.queue.overlap.share),
            step=5,
            label=label("rank.overlap"),
            info=label("rank.overlap_info"),
        )
        add = gr.Button(label("rank.add"), elem_id="rank-add")
    return add, share


def read_tiers(chosen: str) -> list[int]:
    """The tiers that the browser sent, as JSON. An answer without one is null, which `ranks_of` refuses."""
    try:
        return json.loads(chosen or "[]")
    except ValueError as error:
        raise UserError(f"tiers: {chosen!r:.60} is not a list of numbers") from error


def endpoints(tab: RankingTab) -> None:
    """The endpoints for clients. Their answers are dictionaries."""
    service = tab.service

    def asked_for(steps: Iterator) -> dict:
        for _, asked in steps:
            if asked is not None:
                name = tab.blind.add(asked)
                return {"ranking": name, "messages": asked.messages, "answers": asked.letters()}
        raise UserError("stopped: ask again")

    def rank_ask(
        prompt: str,
        models: list[str],
        count: int = USUAL,
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        max_new_tokens: int = DEFAULTS.max_new_tokens,
        seed: int | None = None,
        request: gr.Request = None,
    ) -> dict:
        """Ask for `count` different answers. Returns them by letter, and a name to submit their ranking with."""
        settings = settings_of(temperature, top_p, max_new_tokens, seed)
        return asked_for(
            tab.ask(check_prompt(prompt), models, count, settings, session_of(request))
        )

    def rank_next(
        annotator: str,
        models: list[str],
        count: int = USUAL,
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        max_new_tokens: int = DEFAULTS.max_new_tokens,
        seed: int | None = None,
        request: gr.Request = None,
    ) -> dict:
        """The next prompt of the queue for an annotator, with answers as `rank_ask` gives them."""
        settings = settings_of(temperature, top_p, max_new_tokens, seed)
        own = annotator_of(service, request, annotator)
        return asked_for(tab.next(own, models, count, settings, session_of(request)))

    def rank_submit(
        ranking: str,
        tiers: list[int],
        written: str = "",
        annotator: str = "",
        consent: bool = False,
        request: gr.Request = None,
    ) -> dict:
        """Store a ranking: a tier for each letter in turn, 1 is the best. Returns the models and seeds by letter.

        consent: true if the annotator agreed that it may be published.
        """
        own = annotator_of(service, request, annotator)
        ranked = tab.submit(ranking, tiers, written, own, "api", is_given(consent))
        return {"id": ranked.event.id, "ranks": ranked.event.ranks, "models": ranked.shown}

    def rank_skip(ranking: str = "", annotator: str = "", request: gr.Request = None) -> dict:
        """Skip a prompt. It does not come back to this annotator. Without `ranking`, the one that rank_next refused."""
        tab.skip(ranking, annotator_of(service, request, annotator))
        return {"skipped": True}

    def rank_add(content: str, name: str = "prompts.txt") -> dict:
        """Add the content of a .txt file (one prompt per line) or .jsonl file ({prompt} or {messages}) to the queue."""
        return {"added": tab.queue.add(read_prompts(content.encode(), name))}

    def rank_overlap(share: float, people: int = 2) -> dict:
        """Set the share of the queue's prompts that several people rank, and how many people."""
        tab.queue.set_overlap(Overlap(share, people))
        return asdict(tab.queue.overlap)

    def rank_status(annotator: str = "", request: gr.Request = None) -> dict:
        """Progress through the queue, and the agreement of the annotators."""
        return tab.status(annotator_of(service, request, annotator))

    for function in (
        rank_ask,
        rank_next,
        rank_submit,
        rank_skip,
        rank_add,
        rank_overlap,
        rank_status,
    ):
        gr.api(refusals(function, escape=False), api_name=function.__name__, concurrency_limit=16)
