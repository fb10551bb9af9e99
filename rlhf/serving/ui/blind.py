"""Answers whose models are hidden until somebody has decided: sampled, shuffled, kept on the server, shown as cards.

The browser and API clients get texts under the letters A, B, C ... and a name for the whole. Models, seeds and scores stay
here until `Blind.claim`, which lets one decision through.
"""

import functools
import html
import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

import gradio as gr

from rlhf.errors import UserError
from rlhf.feedback.events import Answer
from rlhf.feedback.models import model_used
from rlhf.serving.engine.requests import Busy, SamplingSettings, StreamEnd, TextChunk
from rlhf.serving.service import Service
from rlhf.serving.ui.remembered import remember
from rlhf.serving.ui.settings_panel import DEFAULTS
from rlhf.serving.ui.texts import label, language_among, text, told

logger = logging.getLogger(__name__)

LETTERS = "ABCDEFGHI"
KEPT = 1000  # undecided questions; the oldest are dropped first
SECONDS = 60 * 60  # that one is kept
UPDATES = 0.06  # seconds between two updates of growing answers
WIDTH = 3  # requests of one ranking in flight
FAILED = "an answer failed: ask again, and see the server's log for the reason"
EMPTY = "a model gave an empty answer: ask again, or change the settings"


@dataclass
class Draft:
    """An answer on its way: the label of its model and its seed. text: so far."""

    model: str
    seed: int
    text: str = ""


@dataclass
class Asked:
    """A question with the answers that were shown for it.

    shown: indices of the drafts in their order on the screen. reward: label of a reward model, or "".
    item: the prompt's id in the queue, or "".
    """

    messages: list[dict]
    drafts: list[Draft]
    shown: list[int]
    settings: dict
    reward: str = ""
    item: str = ""
    since: float = field(default_factory=time.monotonic)
    decided: bool = False

    def texts(self) -> list[str]:
        """The answers in their order on the screen."""
        return [self.drafts[i].text for i in self.shown]

    def letters(self) -> dict[str, str]:
        """Letter -> text, which is all that may be known before the decision."""
        return dict(zip(LETTERS, self.texts(), strict=False))


class Blind:
    """The undecided questions of all sessions, by names that cannot be guessed. Bounded, and each expires."""

    def __init__(self, kept: int = KEPT, seconds: float = SECONDS):
        self.kept = kept
        self.seconds = seconds
        self._asked: dict[str, Asked] = {}  # the oldest first
        self._lock = threading.Lock()

    def add(self, asked: Asked) -> str:
        name = secrets.token_urlsafe(12)
        with self._lock:
            # The old ones go first, then the oldest of the rest.
            old = time.monotonic() - self.seconds
            self._asked = {key: value for key, value in self._asked.items() if value.since > old}
            while len(self._asked) >= self.kept:
                del self._asked[next(iter(self._asked))]
            self._asked[name] = asked
        return name

    def get(self, name: str) -> Asked:
        """UserError for a question that was never asked, or too long ago."""
        with self._lock:
            asked = self._asked.get(name)
        if asked is None or asked.since < time.monotonic() - self.seconds:
            raise UserError("there is no such question, or it was asked too long ago: ask again")
        return asked

    def claim(self, name: str) -> Asked:
        """The question, for its one decision. UserError for a second one."""
        # Two clicks at once: the lock lets one through.
        asked = self.get(name)
        with self._lock:
            if asked.decided:
                raise UserError("this was decided already: ask the next question")
            asked.decided = True
        return asked

    def give_back(self, asked: Asked) -> None:
        """The decision was not saved, so it may be repeated."""
        asked.decided = False


# ---- sampling -------------------------------------------------------------------------------------------------------


def settings_of(temperature, top_p, max_new_tokens, seed) -> SamplingSettings:
    """Settings with a seed; an empty one is drawn. UserError for a bad value."""
    if isinstance(seed, str):
        seed = seed.strip()
        if seed and not seed.isdecimal():
            raise UserError(f"seed={seed!r:.40}: give a whole number, or nothing for a new one")
        seed = int(seed) if seed else None
    # So that the answer can be repeated.
    if seed is None:
        seed = secrets.randbelow(2**31)
    # A slider sends floats.
    if isinstance(max_new_tokens, float) and max_new_tokens.is_integer():
        max_new_tokens = int(max_new_tokens)
    return SamplingSettings(
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
    )


def stored_settings(settings: SamplingSettings) -> dict:
    """Settings for an event. The seed is with each answer."""
    values = asdict(settings)
    del values["seed"]
    # An event is JSON, which has lists and no tuples.
    values["stop"] = list(settings.stop)
    return {name: value for name, value in values.items() if value not in (None, [])}


def check_prompt(prompt: str) -> list[dict]:
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError("write a message first")
    return [{"role": "user", "content": prompt.strip()}]


def check_models(service: Service, models: list[str] | None, least: int, most: int) -> list[str]:
    """Labels of served models, `least` to `most` different ones. UserError names what is wrong."""
    models = list(models or [])
    served = list(service.engine.runs)
    for name in models:
        if name not in served:
            raise UserError(f"no model {name!r:.80}: choose from {', '.join(served)}")
    if len(set(models)) != len(models) or not least <= len(models) <= most:
        wanted = f"{least} to {most} different models"
        if least == most == 1:
            wanted = "one model"
        raise UserError(f"{len(models)} models: choose {wanted}")
    return models


def shuffled(count: int) -> list[int]:
    # Not the seeded generator: an order that could be predicted would not be blind.
    order = list(range(count))
    random.SystemRandom().shuffle(order)
    return order


def stream_all(
    service: Service, messages: list[dict], drafts: list[Draft], settings, session: str
) -> Iterator[None]:
    """Write all answers at once into the drafts; yields after each change, a few times a second at most.

    The requests are checked when this is called. Closing the iterator stops all of them.
    """
    names = [f"{session}-blind-{i}" for i in range(len(drafts))]
    streams = []
    for draft, name in zip(drafts, names, strict=True):
        # Each request is checked here, before the first frame.
        own = replace(settings, seed=draft.seed)
        streams.append(
            service.engine.stream(draft.model, messages, own, request=name, client=session)
        )
    return _joined(service, drafts, streams, names)


def _joined(service: Service, drafts: list[Draft], streams: list, names) -> Iterator[None]:
    events: queue.SimpleQueue = queue.SimpleQueue()

    def read(i: int) -> None:
        try:
            for event in streams[i]:
                events.put((i, event))
            events.put((i, None))
        except BaseException as error:  # the reader waits for an event, so it must get one
            events.put((i, error))

    readers = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(len(streams))]
    for reader in readers:
        reader.start()
    running, shown = len(streams), 0.0
    try:
        yield
        while running:
            i, event = events.get()
            if isinstance(event, TextChunk):
                drafts[i].text += event.text
            elif isinstance(event, StreamEnd) and event.finish == "cancelled":
                raise UserError("stopped: ask again")
            elif isinstance(event, BaseException):
                raise hidden(event)
            # The end of one stream.
            running -= event is None
            # A frame per token would be more than a browser can show.
            if time.monotonic() - shown > UPDATES or not running:
                shown = time.monotonic()
                yield
    finally:
        for name in names:
            service.engine.cancel(name)


def hidden(error: BaseException) -> UserError:
    """The error that may be shown while the models are hidden."""
    # A refusal of the engine is about the request, and names no model that was hidden.
    if isinstance(error, UserError):
        return error
    logger.error("a hidden answer failed", exc_info=error)
    return UserError(FAILED)


def readable(answer: str) -> str:
    """The answer as it is shown and stored. A model that is hardly trained may write NUL, which no row may hold."""
    return answer.replace("\0", "\ufffd").strip()


def check_not_empty(drafts: list[Draft]) -> None:
    """UserError if an answer is empty: it could be neither shown nor learned."""
    for draft in drafts:
        draft.text = readable(draft.text)
        if not draft.text:
            raise UserError(EMPTY)


def sample_different(
    service: Service, messages: list[dict], models: list[str], count: int, settings, session: str
) -> Iterator[list[Draft]]:
    """Yield the different answers so far, until there are `count`, of the models in turn, each with a seed of its own.

    Empty and repeated answers are drawn again, up to 2 * count more.
    """
    drafts: list[Draft] = []
    drawn = 0
    names = [f"{session}-rank-{i}" for i in range(WIDTH)]

    def draw(i: int) -> Draft:
        draft = Draft(models[i % len(models)], settings.seed + i)
        own = replace(settings, seed=draft.seed)
        [completion] = sample_patiently(
            service, draft.model, messages, own, names[i % WIDTH], session
        )
        draft.text = readable(completion.text)
        return draft

    with ThreadPoolExecutor(WIDTH) as pool:
        try:
            while len(drafts) < count and drawn < 3 * count:
                batch = range(drawn, drawn + min(WIDTH, count - len(drafts)))
                drawn = batch.stop
                # In the order of the seeds, whichever is done first.
                for draft in pool.map(draw, batch):
                    if draft.text and draft.text not in [known.text for known in drafts]:
                        drafts.append(draft)
                yield drafts
        finally:
            for name in names:
                service.engine.cancel(name)
    if len(drafts) < 2:
        raise UserError(
            f"{drawn} answers, and {len(drafts)} different ones: raise the temperature, or take another model"
        )


def sample_patiently(service: Service, model, messages, settings, name, session, tries: int = 20):
    """One answer. A full line is tried again after a while, because a ranking asks for several at once."""
    for attempt in range(tries):
        try:
            return service.engine.sample(model, messages, settings, 1, request=name, client=session)
        except Busy:
            if attempt == tries - 1:
                raise
            time.sleep(0.5)
        except UserError:
            raise
        except Exception as error:
            raise hidden(error) from error


# ---- after the decision ---------------------------------------------------------------------------------------------


def answers_of(service: Service, asked: Asked) -> list[Answer]:
    """The answers for an event, with the weights that wrote them and, where a reward model is asked for, scores."""
    scores: list[float | None] = [None] * len(asked.drafts)
    if asked.reward:
        try:
            texts = [draft.text for draft in asked.drafts]
            scores = [
                round(score, 4)
                for score in service.engine.score(asked.reward, asked.messages, texts)
            ]
        except Exception:
            logger.exception("the answers were not scored")  # the judgement counts without scores
    answers = []
    for draft, score in zip(asked.drafts, scores, strict=True):
        used = model_used(draft.model, service.engine.runs.get(draft.model, draft.model))
        answers.append(Answer(draft.text, used, draft.seed, score))
    return answers


def revealed(asked: Asked, answers: list[Answer]) -> dict[str, dict]:
    """Letter -> model, seed, score and text of its answer."""
    result = {}
    for letter, i in zip(LETTERS, asked.shown, strict=False):
        answer = answers[i]
        result[letter] = {
            "model": answer.model.name,
            "seed": answer.seed,
            "score": answer.score,
            "text": answer.text,
        }
    return result


def annotator_of(service: Service, request: gr.Request | None, name: str) -> str:
    """The hash under which somebody is stored: of the login if there is one, else of the given name."""
    # Whoever is logged in cannot take another name.
    username = getattr(request, "username", None)
    name = name or ""  # an untouched text box
    if not isinstance(name, str) or len(name) > 100:
        raise UserError("annotator: a name of at most 100 characters is expected")
    return service.feedback.annotator(username or name)


def name_box(page: gr.Blocks) -> gr.Textbox:
    """The box for the annotator's name. The browser keeps it for the next visit, and for the other tab."""
    box = gr.Textbox(label=label("judge.name"), info=label("judge.name_info"), max_length=100)
    remember(page, box, box.blur, name="rlhf-annotator", default="")
    return box


def message_box(service: Service, elem_id: str) -> gr.Textbox:
    """The box for the message that the models answer."""
    return gr.Textbox(
        label=label("judge.message"),
        placeholder=label("judge.write"),
        lines=2,
        max_lines=8,
        elem_id=elem_id,
        max_length=service.engine.limits.characters,
    )


def sampling(service: Service) -> list:
    """Temperature, top-p, most tokens and seed."""
    with gr.Accordion(label("judge.sampling"), open=False):
        temperature = gr.Slider(
            0, 2, DEFAULTS.temperature, step=0.05, label=label("judge.temperature")
        )
        top_p = gr.Slider(0.05, 1, DEFAULTS.top_p, step=0.01, label=label("judge.top_p"))
        most = service.engine.limits.new_tokens
        tokens = gr.Slider(
            1, most, min(DEFAULTS.max_new_tokens, most), step=1, label=label("judge.max_tokens")
        )
        seed = gr.Textbox(
            label=label("judge.seed_label"), placeholder=label("judge.seed_placeholder")
        )
    return [temperature, top_p, tokens, seed]


def session_of(request: gr.Request | None) -> str:
    return getattr(request, "session_hash", None) or secrets.token_hex(8)


def refusals(function: Callable, *, escape: bool) -> Callable:
    """The handler with refusals as gr.Error. escape: for a notice of the page, which is HTML; clients get plain text."""

    def shown(error: Exception, values: list) -> gr.Error:
        # A page has a request in the reader's language.
        language = language_among(values)
        # An error of our own tells the user what to do; others may hold paths of the server.
        if isinstance(error, UserError):
            message = told(error, language)
        else:
            logger.error("an action failed", exc_info=error)
            message = text("judge.failed", language)
        if escape:
            message = html.escape(message)
        return gr.Error(message, print_exception=False)

    @functools.wraps(function)
    def handler(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise shown(error, [*args, *kwargs.values()]) from error

    @functools.wraps(function)
    def generator(*args, **kwargs):
        try:
            yield from function(*args, **kwargs)
        except Exception as error:
            raise shown(error, [*args, *kwargs.values()]) from error

    return generator if is_generator(function) else handler


def is_generator(function: Callable) -> bool:
    # the flag of a generator function
    return bool(function.__code__.co_flags & 0x20)


# ---- cards ----------------------------------------------------------------------------------------------------------


def words(content: str) -> str:
    """A text as it is, in HTML."""
    return f"<div class='words' dir='auto'>{html.escape(content)}</div>"


def reveal_line(shown: dict, language: str) -> str:
    """Under an answer, after the decision: model, seed and score."""
    parts = [f"<b>{html.escape(shown['model'])}</b>"]
    if shown["seed"] is not None:
        parts.append(text("judge.seed", language, seed=shown["seed"]))
    if shown["score"] is not None:
        parts.append(text("judge.score", language, score=f"{shown['score']:.2f}"))
    spans = " · ".join(f"<span>{part}</span>" for part in parts)
    return f"<div class='reveal'>{spans}</div>"


def prompt_html(messages: list[dict], language: str) -> str:
    """The conversation that is answered, as text."""
    turns = []
    for message in messages:
        role = text(f"judge.{message['role']}", language)
        turns.append(
            f"<div class='turn {html.escape(message['role'])}'><span class='who'>{role}</span>"
            f"{words(message['content'])}</div>"
        )
    return f"<div class='asked'>{''.join(turns)}</div>"


TEXTS = {
    "judge.seed": ("seed {seed}", "시드 {seed}"),
    "judge.score": ("reward {score}", "보상 {score}"),
    "judge.user": ("User", "사용자"),
    "judge.assistant": ("Assistant", "어시스턴트"),
    "judge.system": ("System", "시스템"),
    "judge.name": ("Your name", "이름"),
    "judge.name_info": (
        "Stored as a hash. It tells apart who decided what.",
        "해시로 저장됩니다. 누가 판단했는지 구분하는 데 쓰입니다.",
    ),
    "judge.sampling": ("Sampling", "샘플링"),
    "judge.temperature": ("Temperature", "온도"),
    "judge.top_p": ("Top-p", "Top-p"),
    "judge.max_tokens": ("Max tokens", "최대 토큰"),
    "judge.seed_label": ("Seed", "시드"),
    "judge.seed_placeholder": ("a new one each time", "매번 새로"),
    "judge.message": ("Message", "메시지"),
    "judge.write": ("Write a message", "메시지를 입력하세요"),
    "judge.models": ("Models", "모델"),
    "judge.reward": ("Reward model", "보상 모델"),
    "judge.none": ("None", "없음"),
    "judge.failed": (
        "That failed. See the server's log for the reason.",
        "실패했습니다. 이유는 서버 로그에 있습니다.",
    ),
}

CSS = """
.judge-cards {display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr));}
.judge-card {
  border: 1px solid var(--border-color-primary); border-radius: 16px; padding: 14px 16px; min-width: 0;
  background: var(--block-background-fill); display: flex; flex-direction: column; gap: 10px;
}
.judge-card:focus-visible, .judge-card:focus-within {outline: 2px solid var(--primary-500); outline-offset: 1px;}
.judge-card .letter {
  font-weight: 650; font-size: 0.82rem; width: 26px; height: 26px; border-radius: 50%; display: inline-flex;
  align-items: center; justify-content: center; background: var(--neutral-100); color: var(--neutral-700);
}
.dark .judge-card .letter {background: var(--neutral-700); color: var(--neutral-100);}
.judge-card.won {border-color: var(--primary-500);}
.judge-card.won .letter {background: var(--primary-700); color: white;}
.judge-card .words, .asked .words {
  white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; color: var(--body-text-color);
}
.judge-card .words {min-height: 3em; flex: 1;}
.judge-card .waiting {color: var(--body-text-color-subdued);}
.judge-card .reveal {
  font-size: 0.84rem; color: var(--body-text-color-subdued); border-top: 1px solid var(--border-color-primary);
  padding-top: 8px;
}
.judge-card .reveal b {color: var(--body-text-color); font-weight: 600;}
.asked {display: flex; flex-direction: column; gap: 6px; padding: 4px 2px;}
.asked .who {font-size: 0.78rem; color: var(--body-text-color-subdued);}
.judge-hint {font-size: 0.84rem; color: var(--body-text-color-subdued); line-height: 1.6;}
.judge-hint kbd {
  font: inherit; font-size: 0.78rem; padding: 1px 6px; border-radius: 6px; border: 1px solid var(--border-color-primary);
  background: var(--neutral-50);
}
.dark .judge-hint kbd {background: var(--neutral-800);}
.judge-table {overflow-x: auto;}
.judge-table table {border-collapse: collapse; width: 100%; font-size: 0.9rem; margin: 0; border: none;}
.judge-table caption {text-align: left; font-weight: 600; padding: 4px 0 8px;}
.judge-table :is(th, td, tr, thead, tbody) {border: none; background: transparent;}
.judge-table table :is(th, td) {
  text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--border-color-primary);
  font-variant-numeric: tabular-nums;
}
.judge-table table th {font-weight: 500; color: var(--body-text-color-subdued);}
.judge-table table {min-width: 500px;}
.judge-table .bar {min-width: 90px; width: 30%;}
.judge-table svg {width: 100%; height: 18px; display: block;}
.judge-cards + .judge-hint {margin-top: 10px;}
.judge-note {font-size: 0.84rem; color: var(--body-text-color-subdued); margin: 6px 0 0;}
.verdicts button {min-height: 44px;}
.tab-line {padding: 0 2px; margin: -2px 0 2px;}
.tab-line, .tab-line * {font-size: 0.9rem !important; color: var(--body-text-color-subdued) !important; line-height: 1.5;}
@media (max-width: 640px) {
  .judge-hint .keys {display: none;}
  .judge-table table {min-width: 0; font-size: 0.84rem;}
  .judge-table :is(.bar, th[aria-hidden]) {display: none;}
  .verdicts {display: grid !important; grid-template-columns: 1fr 1fr;}
  .verdicts > * {min-width: 0 !important; order: 1;}
  .verdicts > #compare-tie, .verdicts > #compare-bad {order: 2;}
}
"""
