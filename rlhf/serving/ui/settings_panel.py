"""The settings of an answer: their names, which the endpoints and the panel share, and the panel itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import gradio as gr

from rlhf.serving.engine.requests import SamplingSettings
from rlhf.serving.ui.texts import Refusal, label

if TYPE_CHECKING:  # it needs torch
    from rlhf.serving.engine.engine import Engine

DEFAULTS = SamplingSettings()  # the engine's own, so that the panel and the API agree
MOST_SAMPLES = 9  # of best-of-n in the panel; the engine has its own limit


@dataclass(frozen=True)
class Controls:
    """The settings of an answer.

    model: a key of engine.runs.
    system: the system prompt, or "".
    reward_model: a key of engine.reward_runs that scores the answers, or "".
    best_of: number of answers to sample, of which the best scored one is shown.
    """

    model: str
    system: str
    settings: SamplingSettings
    reward_model: str
    best_of: int


def parameters(engine: "Engine") -> dict[str, tuple[type, object]]:
    """Name of each setting of an endpoint -> (type, default), in the order of the panel and of `read_controls`."""
    return {
        "model": (str, next(iter(engine.runs), "")),
        "system_prompt": (str, ""),
        "temperature": (float, DEFAULTS.temperature),
        "top_p": (float, DEFAULTS.top_p),
        "max_tokens": (int, DEFAULTS.max_new_tokens),
        "seed": (int | None, None),
        "top_k": (int, DEFAULTS.top_k),
        "repetition_penalty": (float, DEFAULTS.repetition_penalty),
        "reward_model": (str, ""),
        "best_of": (int, 1),
    }


def read_controls(  # noqa: PLR0913 (the endpoints name each setting)
    model,
    system_prompt,
    temperature,
    top_p,
    max_tokens,
    seed,
    top_k,
    repetition_penalty,
    reward_model,
    best_of,
) -> Controls:
    """Controls from the panel or an endpoint. A bad value is a UserError."""
    settings = SamplingSettings(
        temperature=temperature,
        top_p=top_p,
        top_k=whole_number(top_k),
        max_new_tokens=whole_number(max_tokens),
        repetition_penalty=repetition_penalty,
        seed=read_seed(seed),
    )
    best_of = whole_number(best_of)
    # type(), because True is an int
    if type(best_of) is not int or best_of < 1:
        raise Refusal("chat.error.best_of")
    if best_of > 1 and not reward_model:
        raise Refusal("chat.error.best_of_needs")
    # None, when the box is closed
    if not isinstance(system_prompt, str):
        system_prompt = ""
    return Controls(model, system_prompt.strip(), settings, reward_model or "", best_of)


def read_seed(seed) -> int | None:
    """An empty seed is None: the engine draws one."""
    if seed is None or not str(seed).strip():
        return None
    seed = whole_number(seed)
    if type(seed) is not int or not 0 <= seed <= 2**53:
        raise Refusal("chat.error.seed")
    return seed


def whole_number(value):
    """An int if the value is one in another type: sliders give floats, text boxes strings. Else the value as it is."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value  # whoever reads it refuses it with a message


def model_picker(engine: "Engine", choices: list[tuple[str, str]]) -> gr.Dropdown:
    """choices: (title, name) of each model."""
    return gr.Dropdown(
        choices,
        value=next(iter(engine.runs), None),
        label=label("chat.model"),
        elem_id="chat-model",
        container=False,
        filterable=len(choices) > 8,
    )


def panel(engine: "Engine") -> list[gr.components.Component]:
    """All controls but the model, in the order of `parameters`."""
    system = gr.Textbox(
        label=label("chat.system"),
        placeholder=label("chat.system.hint"),
        lines=2,
        max_lines=6,
        max_length=engine.limits.characters,
    )
    # The engine's own limits are wider; these are values that make sense.
    temperature = gr.Slider(
        0, 2, DEFAULTS.temperature, step=0.05, label=label("chat.temperature"), buttons=[]
    )
    top_p = gr.Slider(0.05, 1, DEFAULTS.top_p, step=0.01, label=label("chat.top_p"), buttons=[])
    max_tokens = gr.Slider(
        1,
        engine.limits.new_tokens,
        DEFAULTS.max_new_tokens,
        step=1,
        label=label("chat.max_tokens"),
        buttons=[],
    )
    # gr.Number cannot be empty.
    seed = gr.Textbox(label=label("chat.seed"), placeholder=label("chat.seed.hint"), max_length=16)
    with gr.Accordion(label("chat.more"), open=False, elem_id="chat-more"):
        top_k = gr.Slider(0, 200, DEFAULTS.top_k, step=1, label=label("chat.top_k"), buttons=[])
        penalty = gr.Slider(
            1,
            2,
            DEFAULTS.repetition_penalty,
            step=0.05,
            label=label("chat.penalty"),
            buttons=[],
        )
    names = list(engine.reward_runs)  # often none
    reward_model = gr.Dropdown(
        [("–", ""), *[(name, name) for name in names]],
        value="",
        label=label("chat.reward_model"),
        info=label("chat.reward_model.hint"),
        visible=bool(names),
    )
    # With nine answers a reader still knows where to look.
    most = min(MOST_SAMPLES, engine.limits.samples)
    best_of = gr.Slider(
        1,
        most,
        1,
        step=1,
        label=label("chat.best_of"),
        info=label("chat.best_of.hint"),
        buttons=[],
        visible=False,  # until a reward model is chosen
    )
    return [
        system,
        temperature,
        top_p,
        max_tokens,
        seed,
        top_k,
        penalty,
        reward_model,
        best_of,
    ]
