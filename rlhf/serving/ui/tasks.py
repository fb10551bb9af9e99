"""The tabs of finished encoders: Classify (label bars), Tag (coloured spans), Read (the answer in its text).

The three have one shape, a `View`: the texts that go in, the components that come out, and a pure function from a
prediction to their values. The functions above `encoder_view` know nothing else of Gradio.
"""

import html
import logging
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.predictors import Encoders

logger = logging.getLogger(__name__)

IDLE = "<div class='verdict'><span>The answer appears here.</span></div>"
MOST = 10  # labels, entities' types with a colour of their own
COLOURS = (
    "#14b8a6", "#f59e0b", "#6366f1", "#f43f5e", "#84cc16", "#0ea5e9", "#d946ef", "#f97316", "#64748b", "#a16207",
)  # fmt: skip


# ---- a prediction as values of the outputs -----------------------------------------------------------------------


def show_classified(row: dict, prediction: dict) -> tuple[str, dict[str, float] | None]:
    """(heading, probability of each label or None): one label, several, or a number."""
    label, probabilities = prediction["label"], prediction["probabilities"]
    if isinstance(label, int | float):
        return heading(f"{label:.3f}", "the number that the model gives this text"), None
    more = len(probabilities) - MOST
    note = f"the {MOST} likeliest of {len(probabilities)} labels" if more > 0 else ""
    if isinstance(label, list):
        title = ", ".join(label) or "No label"
        note = ", ".join(
            filter(
                None, ["each label is more likely than not" if label else "none is likely", note]
            )
        )
    else:
        title, note = label, ", ".join(filter(None, [f"{probabilities[label]:.1%}", note]))
    return heading(title, note), dict(list(probabilities.items())[:MOST])


def show_tagged(row: dict, prediction: dict) -> tuple[str, list, list]:
    """(heading, spans of the text, rows of the table)."""
    entities = sorted(prediction["entities"], key=lambda entity: entity["start"])
    title = (
        f"{len(entities)} entit{'y' if len(entities) == 1 else 'ies'}" if entities else "No entity"
    )
    marks = [(entity["start"], entity["end"], entity["type"]) for entity in entities]
    table = [[entity["type"], entity["text"], f"{entity['score']:.1%}"] for entity in entities]
    return heading(title, ""), spans(row["text"], marks), table


def show_read(row: dict, prediction: dict) -> tuple[str, list, list]:
    """(heading, the context with the answer marked, rows of the table of candidates)."""
    found = bool(prediction["answer"])
    note = f"score {prediction['score']:.1%}"
    if prediction.get("no_answer") is not None:
        note += f"; no answer: {prediction['no_answer']:.1%}"
    marks = [(prediction["start"], prediction["end"], "answer")] if found else []
    table = [
        [candidate["answer"] or "(no answer)", f"{candidate['score']:.1%}"]
        for candidate in prediction["n_best"]
    ]
    title = prediction["answer"] if found else "The text does not say"
    return heading(title, note), spans(row["context"], marks), table


def heading(title: str, note: str) -> str:
    """The answer in large letters, as HTML, with a line below it."""
    return f"<div class='verdict'><b>{html.escape(title)}</b><span>{html.escape(note)}</span></div>"


def spans(text: str, marks: list[tuple[int, int, str]]) -> list[tuple[str, str | None]]:
    """The text in pieces, marked or not; marks: (start, end, name) in order, without overlaps."""
    pieces, last = [], 0
    for start, end, name in marks:
        pieces += [(text[last:start], None), (text[start:end], name)]
        last = end
    return [piece for piece in [*pieces, (text[last:], None)] if piece[0]]


def type_colours(labels: list[str]) -> dict[str, str]:
    """A colour for each type of entity, in the order of the labels; beyond the last one they begin again."""
    types = dict.fromkeys(label[2:] for label in labels if label[:2] in ("B-", "I-"))
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(types)}


# ---- the three views ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """kind of model; name of the tab, its button and, in small letters, its endpoint; texts: column -> (label,
    placeholder, lines); examples, for models whose run left none; show: (row, prediction) -> values of the outputs;
    outputs: makes them; fit: labels of a model -> what changes in each output with the model."""

    kind: str
    name: str
    texts: dict[str, tuple[str, str, int]]
    examples: tuple[dict[str, str], ...]
    show: Callable[[dict, dict], tuple]
    outputs: Callable[..., list]
    fit: Callable[[list[str]], list[dict]]

    @property
    def action(self) -> str:
        return self.name.lower()


def heading_output():
    return gr.HTML(IDLE, elem_classes="answer", padding=False)


def marked_output(options: dict):
    return gr.HighlightedText(
        show_label=False, show_inline_category=False, elem_classes="marked", **options
    )


def table_output(headers: list[str]):
    return gr.Dataframe(
        headers=headers, show_label=False, interactive=False, wrap=True, buttons=[], max_height=320
    )


VIEWS = (
    View(
        "classifier",
        "Classify",
        {
            "text": ("Text", "A sentence or a paragraph", 4),
            "text_pair": ("Second text", "What it is compared with", 3),
        },
        (
            {
                "text": "A warm and funny film that I would gladly see again.",
                "text_pair": "The film is good.",
            },
            {
                "text": "The parcel came late and the box was damaged.",
                "text_pair": "The parcel came on time.",
            },
            {
                "text": "Can you tell me when the shop opens tomorrow?",
                "text_pair": "The shop is open now.",
            },
        ),
        show_classified,
        lambda head, bars: [
            heading_output(),
            gr.Label(show_label=False, show_heading=False, **bars),
        ],
        lambda labels: [{}, {"visible": len(labels) != 1}],
    ),
    View(
        "tagger",
        "Tag",
        {"text": ("Text", "A sentence or a paragraph", 4)},
        (
            {"text": "Ada Lovelace met Charles Babbage in London in 1833."},
            {
                "text": "Please book a table for four at Luigi's tomorrow at 7 pm, the name is Smith."
            },
        ),
        show_tagged,
        lambda head, marked, table: [
            heading_output(),
            marked_output(marked),
            table_output(["type", "text", "score"]),
        ],
        lambda labels: [{}, {"color_map": type_colours(labels), "show_legend": True}, {}],
    ),
    View(
        "reader",
        "Read",
        {
            "question": ("Question", "Who, what, when, where?", 1),
            "context": ("Text", "The text that may answer it", 8),
        },
        (
            {
                "question": "Who wrote the first program?",
                "context": "The engine was never finished. Ada Lovelace wrote the first program for it in 1843.",
            },
            {
                "question": "What time is the table booked for?",
                "context": "Hello, I would like to book a table for four at half past seven tomorrow evening.",
            },
        ),
        show_read,
        lambda head, marked, table: [
            heading_output(),
            marked_output(marked),
            table_output(["candidate", "score"]),
        ],
        lambda labels: [{}, {"color_map": {"answer": COLOURS[0]}}, {}],
    ),
)


# ---- handlers ----------------------------------------------------------------------------------------------------


def ask(encoders: Encoders, view: View, model: str, *texts: str) -> tuple:
    """Values of the view's outputs for the texts, given in the order of view.texts."""
    row = dict(zip(view.texts, texts, strict=True))
    prediction = encoders.predict(view.kind, model, row)
    return view.show(row, prediction)


def guarded(call: Callable[[], tuple], outputs: int) -> list:
    """What `call` returns; of an error a notice, and empty outputs, so that no old answer stands under a new text."""
    try:
        return list(call())
    except UserError as error:
        gr.Warning(html.escape(str(error)))
    except Exception:
        logger.exception("the prediction failed")
        gr.Warning("The model failed. The server's log says why.")
    return [IDLE, *[None] * (outputs - 1)]


def example_rows(encoders: Encoders, view: View, model: str) -> list[list[str]]:
    """Texts to try with this model, in the order of view.texts."""
    columns = encoders.columns(view.kind, model)
    rows = encoders.examples(view.kind, model) or view.examples
    return [
        [row.get(column, "") if column in columns else "" for column in view.texts] for row in rows
    ]


def example_names(rows: list[list[str]]) -> list[str]:
    """The beginning of each example, for its button."""
    names = [" / ".join(text for text in row if text) for row in rows]
    return [name if len(name) <= 80 else name[:79] + "…" for name in names]


# ---- wiring ------------------------------------------------------------------------------------------------------

CSS = """
.asked, .found {gap: 12px;}
.answer {min-height: 3.2rem; padding: 2px 4px !important;}
.verdict b {
  display: block; font-size: 1.35rem; font-weight: 650; letter-spacing: -0.01em; line-height: 1.3;
  color: var(--body-text-color); overflow-wrap: anywhere;
}
.found * {font-family: var(--font) !important;}
.marked .textfield {display: block; font-size: 0; word-break: normal; overflow-wrap: anywhere;}  /* 0: no gaps */
.marked .text {font-size: 0.95rem; line-height: 2;}
.marked .token.highlighted {margin: 0; padding: 0;}
.marked .highlighted .text {background: inherit; border-radius: 4px; padding: 3px 2px; box-decoration-break: clone;}
.dark .marked .highlighted .text, .dark .marked .legend-item {color: var(--body-text-color) !important;}
.verdict span {font-size: 0.85rem; color: var(--body-text-color-subdued);}
"""


def encoder_view(encoders: Encoders, view: View) -> None:
    """Inside a page: inputs and examples on the left, what the model says on the right."""
    models = list(encoders.runs[view.kind])

    def columns(model: str) -> list[str]:
        return encoders.columns(view.kind, model)

    def props(model: str) -> list[dict]:
        return view.fit(encoders.labels(view.kind, model))

    rows = example_rows(encoders, view, models[0])
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320, elem_classes="asked"):
            model = gr.Dropdown(
                models, value=models[0], label="Model", filterable=len(models) > MOST
            )
            texts = [
                gr.Textbox(
                    label=label,
                    placeholder=placeholder,
                    lines=lines,
                    max_lines=4 * lines,
                    max_length=encoders.characters,
                    visible=column in columns(models[0]),
                )
                for column, (label, placeholder, lines) in view.texts.items()
            ]
            button = gr.Button(view.name, variant="primary")
            examples = gr.Dataset(
                components=texts,
                samples=rows,
                sample_labels=example_names(rows),
                type="index",
                label="Examples",
            )
        with gr.Column(scale=5, min_width=300, elem_classes="found"):
            outputs = view.outputs(*props(models[0]))

    def run(model: str, *texts: str) -> list:
        return guarded(lambda: ask(encoders, view, model, *texts), len(outputs))

    def choose(model: str) -> list:
        """The second text, the examples and the look of the outputs follow the model; its answers are cleared."""
        rows = example_rows(encoders, view, model)
        shown = [gr.update(visible=column in columns(model)) for column in view.texts]
        empty = [
            gr.update(value=value, **changes)
            for value, changes in zip([IDLE, None, None], props(model))
        ]
        return [*shown, gr.update(samples=rows, sample_labels=example_names(rows)), *empty]

    def example(model: str, place: int) -> list[str] | str:
        row = example_rows(encoders, view, model)[place]
        return (
            row if len(row) > 1 else row[0]
        )  # of one output Gradio takes the value, not a list of it

    asked = {
        "inputs": [model, *texts],
        "outputs": outputs,
        "concurrency_limit": 4,
        "show_progress": "minimal",
    }
    at_once = {"queue": False, "show_progress": "hidden"}
    gr.on([button.click, *(text.submit for text in texts)], run, api_name=view.action, **asked)
    model.change(
        choose, model, [*texts, examples, *outputs], api_name=f"{view.action}_model", **at_once
    )
    filled = examples.click(
        example, [model, examples], texts, api_name=f"{view.action}_example", **at_once
    )
    filled.then(run, api_name=f"{view.action}_filled", **asked)
