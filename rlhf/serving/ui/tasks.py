"""The tabs of trained encoders, one for each task that the app shows.

All have one shape, a `View`: the texts that go in, the components that come out, and a pure function from a prediction to
their values. Except for the makers of outputs, the functions above `encoder_view` know nothing of Gradio's components.
"""

import html
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.predictors import Encoders
from rlhf.task_table import TASKS

logger = logging.getLogger(__name__)

IDLE = "<div class='verdict'><span>The answer appears here.</span></div>"
BARS = 10  # labels with a bar
SEARCHABLE = 10  # a list of more models than this can be searched
EXAMPLE_NAME = 60  # characters on the button of an example; Gradio cuts longer ones, inside a word
# Colours of types of entities.
COLOURS = (
    "#14b8a6", "#f59e0b", "#6366f1", "#f43f5e", "#84cc16", "#0ea5e9", "#d946ef", "#f97316", "#64748b", "#a16207",
)  # fmt: skip


# ---- a prediction as values of the outputs -----------------------------------------------------------------------


def show_labels(row: dict, prediction: dict) -> tuple[str, dict[str, float] | None]:
    """(heading, probability of each label or None): one label, several, or a number."""
    label, probabilities = prediction["label"], prediction["probabilities"]
    # regression
    if isinstance(label, int | float):
        return heading(f"{label:.3f}", "the number that the model gives this text"), None
    # any number of labels
    if isinstance(label, list):
        title = ", ".join(label) or "No label"
        notes = ["each label is more likely than not" if label else "none is likely"]
    else:
        title, notes = label, [f"{probabilities[label]:.1%}"]
    if len(probabilities) > BARS:
        notes.append(f"the {BARS} likeliest of {len(probabilities)} labels")
    bars = dict(list(probabilities.items())[:BARS])
    return heading(title, ", ".join(notes)), bars


def show_entities(row: dict, prediction: dict) -> tuple[str, list, list]:
    """(heading, spans of the text, rows of the table)."""
    entities = sorted(prediction["entities"], key=lambda entity: entity["start"])
    marks, table = [], []
    for entity in entities:
        marks.append((entity["start"], entity["end"], entity["type"]))
        table.append([entity["type"], entity["text"], f"{entity['score']:.1%}"])
    title = {0: "No entity", 1: "1 entity"}.get(len(entities), f"{len(entities)} entities")
    return heading(title, ""), spans(row["text"], marks), table


def show_answer(row: dict, prediction: dict) -> tuple[str, list, list]:
    """(heading, the context with the answer marked, rows of the table of candidates)."""
    note = f"score {prediction['score']:.1%}"
    if prediction.get("no_answer") is not None:
        note += f"; no answer: {prediction['no_answer']:.1%}"
    title, marks = "The text does not say", []
    if prediction["answer"]:
        title = prediction["answer"]
        marks = [(prediction["start"], prediction["end"], "answer")]
    table = []
    for candidate in prediction["n_best"]:
        table.append([candidate["answer"] or "(no answer)", f"{candidate['score']:.1%}"])
    return heading(title, note), spans(row["context"], marks), table


def show_choices(row: dict, prediction: dict) -> tuple[str, dict[str, float]]:
    """(heading, probability of each choice). A choice that is given twice has one bar, of its first place."""
    choices = [line.strip() for line in row["choices"].splitlines() if line.strip()]
    probabilities = prediction["probabilities"]
    # gr.Label takes names, which must differ.
    bars: dict[str, float] = {}
    for choice, probability in zip(choices, probabilities):
        bars.setdefault(choice, probability)
    return heading(prediction["choice"], f"{max(probabilities):.1%}"), bars


def heading(title: str, note: str) -> str:
    """The answer in large letters, as HTML, with a line below it."""
    return f"<div class='verdict'><b>{html.escape(title)}</b><span>{html.escape(note)}</span></div>"


def spans(text: str, marks: list[tuple[int, int, str]]) -> list[tuple[str, str | None]]:
    """The text in pieces, marked or not; marks: (start, end, name) in order, without overlaps."""
    # HighlightedText wants the whole text, in order, unmarked pieces too.
    pieces, last = [], 0
    for start, end, name in marks:
        pieces += [(text[last:start], None), (text[start:end], name)]
        last = end
    pieces.append((text[last:], None))
    return [(piece, name) for piece, name in pieces if piece]


def type_colours(labels: list[str]) -> dict[str, str]:
    """A colour for each type of entity, in the order of the labels. They repeat where there are more types than colours."""
    # B-person and I-person are one type; O is none.
    types = dict.fromkeys(label[2:] for label in labels if label[:2] in ("B-", "I-"))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(types)}


# ---- the views ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextInput:
    """A text box: its label, what it shows while it is empty, and its height in lines."""

    label: str
    placeholder: str
    lines: int


@dataclass(frozen=True)
class View:
    """The tab of one task.

    kind: a key of TASKS, which is also the name of its endpoint. button: its text.
    inputs: column -> text box. examples: texts to try with models whose run left none.
    show: (row, prediction) -> values of the outputs.
    outputs: makes the components, one set of options each. options: labels of a model -> these options.
    """

    kind: str
    button: str
    inputs: dict[str, TextInput]
    examples: tuple[dict[str, str], ...]
    show: Callable[[dict, dict], tuple]
    outputs: Callable[..., list]
    options: Callable[[list[str]], list[dict]]

    @property
    def title(self) -> str:
        return TASKS[self.kind].title


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


def classification_outputs(heading: dict, bars: dict) -> list:
    return [heading_output(), gr.Label(show_label=False, show_heading=False, **bars)]


def classification_options(labels: list[str]) -> list[dict]:
    """A model with one output predicts a number, which has no bars."""
    return [{}, {"visible": len(labels) != 1}]


def ner_outputs(heading: dict, marked: dict, table: dict) -> list:
    return [heading_output(), marked_output(marked), table_output(["type", "text", "score"])]


def ner_options(labels: list[str]) -> list[dict]:
    return [{}, {"color_map": type_colours(labels), "show_legend": True}, {}]


def multiple_choice_outputs(heading: dict, bars: dict) -> list:
    return [heading_output(), gr.Label(show_label=False, show_heading=False, **bars)]


def multiple_choice_options(labels: list[str]) -> list[dict]:
    return [{}, {}]


def question_answering_outputs(heading: dict, marked: dict, table: dict) -> list:
    return [heading_output(), marked_output(marked), table_output(["candidate", "score"])]


def question_answering_options(labels: list[str]) -> list[dict]:
    return [{}, {"color_map": {"answer": COLOURS[0]}}, {}]


VIEWS = (
    View(
        kind="classification",
        button="Classify",
        inputs={
            "text": TextInput("Text", "A sentence or a paragraph", lines=4),
            "text_pair": TextInput("Second text", "What it is compared with", lines=3),
        },
        examples=(
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
        show=show_labels,
        outputs=classification_outputs,
        options=classification_options,
    ),
    View(
        kind="ner",
        button="Find entities",
        inputs={"text": TextInput("Text", "A sentence or a paragraph", lines=4)},
        examples=(
            {"text": "Ada Lovelace met Charles Babbage in London in 1833."},
            {
                "text": "Please book a table for four at Luigi's tomorrow at 7 pm, the name is Smith."
            },
        ),
        show=show_entities,
        outputs=ner_outputs,
        options=ner_options,
    ),
    View(
        kind="question_answering",
        button="Answer",
        inputs={
            "question": TextInput("Question", "Who, what, when, where?", lines=1),
            "context": TextInput("Text", "The text that may answer it", lines=8),
        },
        examples=(
            {
                "question": "Who wrote the first program?",
                "context": "The engine was never finished. Ada Lovelace wrote the first program for it in 1843.",
            },
            {
                "question": "What time is the table booked for?",
                "context": "Hello, I would like to book a table for four at half past seven tomorrow evening.",
            },
        ),
        show=show_answer,
        outputs=question_answering_outputs,
        options=question_answering_options,
    ),
    View(
        kind="multiple_choice",
        button="Choose",
        inputs={
            "text": TextInput("Text", "A sentence or a question", lines=3),
            "choices": TextInput("Choices", "One per line", lines=5),
        },
        examples=(
            {
                "text": "Ada opened the door.",
                "choices": "She went in.\nShe is a fruit.\nThe soup was too hot.",
            },
            {
                "text": "Where can you borrow a book?",
                "choices": "In a library.\nIn a fridge.",
            },
        ),
        show=show_choices,
        outputs=multiple_choice_outputs,
        options=multiple_choice_options,
    ),
)


# ---- handlers ----------------------------------------------------------------------------------------------------


def ask(encoders: Encoders, view: View, model: str, *texts: str) -> tuple:
    """Values of the view's outputs for the texts, given in the order of view.inputs."""
    row = dict(zip(view.inputs, texts, strict=True))
    prediction = encoders.predict(view.kind, model, row)
    return view.show(row, prediction)


def guarded(call: Callable[[], tuple], outputs: int) -> list:
    """The values that `call` returns. An error becomes a notice and empties the outputs, so that no old answer is left
    below a new text."""
    try:
        return list(call())
    except UserError as error:
        gr.Warning(html.escape(str(error)))
    # The message could hold a path of the server: only the log gets it.
    except Exception:
        logger.exception("the prediction failed")
        gr.Warning("The model failed. The server's log says why.")
    return [IDLE, *[None] * (outputs - 1)]


def example_rows(encoders: Encoders, view: View, model: str) -> list[list[str]]:
    """Texts to try with this model, in the order of view.inputs; "" where the model does not read a text."""
    columns = encoders.columns(view.kind, model)
    rows = []
    # Held-out rows of the run show what the model was trained for.
    for example in encoders.examples(view.kind, model) or view.examples:
        texts = {column: example.get(column, "") for column in columns}
        rows.append([texts.get(column, "") for column in view.inputs])
    return rows


def example_names(rows: list[list[str]]) -> list[str]:
    """The beginning of each example, for its button."""
    names = []
    for row in rows:
        name = " / ".join(text for text in row if text)
        name = " ".join(name.split())  # choices are lines
        if len(name) > EXAMPLE_NAME:
            name = name[: EXAMPLE_NAME - 1]
            name = (name.rpartition(" ")[0] or name) + "…"  # at a word, if there is a space
        names.append(name)
    return names


TEXTS = {
    "tasks.classification": ("Classification", "분류"),
    "tasks.ner": ("Entities", "개체명"),
    "tasks.question_answering": ("Question answering", "질의응답"),
    "tasks.multiple_choice": ("Multiple choice", "객관식"),
}


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
    """Inside a page: inputs and examples on the left, the prediction on the right."""
    models = list(encoders.runs[view.kind])
    first = models[0]
    rows = example_rows(encoders, view, first)
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320, elem_classes="asked"):
            model = gr.Dropdown(
                models, value=first, label="Model", filterable=len(models) > SEARCHABLE
            )
            texts = text_boxes(view, encoders.columns(view.kind, first), encoders.characters)
            button = gr.Button(view.button, variant="primary")
            examples = gr.Dataset(
                components=texts,
                samples=rows,
                sample_labels=example_names(rows),
                type="index",
                label="Examples",
            )
        with gr.Column(scale=5, min_width=300, elem_classes="found"):
            outputs = view.outputs(*options_for(encoders, view, first))

    def predict(model: str, *texts: str) -> list:
        return guarded(lambda: ask(encoders, view, model, *texts), len(outputs))

    predict_options = {
        "inputs": [model, *texts],
        "outputs": outputs,
        "concurrency_limit": 4,
        "show_progress": "minimal",
    }
    at_once = {"queue": False, "show_progress": "hidden"}
    # Enter in any box does what the button does.
    submits = [text.submit for text in texts]
    gr.on([button.click, *submits], predict, api_name=view.kind, **predict_options)
    model.change(
        partial(choose, encoders, view),
        model,
        [*texts, examples, *outputs],
        api_name=f"{view.kind}_model",
        **at_once,
    )
    # An example fills the boxes, and is then predicted.
    filled = examples.click(
        partial(fill, encoders, view),
        [model, examples],
        texts,
        api_name=f"{view.kind}_example",
        **at_once,
    )
    filled.then(predict, api_name=f"{view.kind}_filled", **predict_options)


def text_boxes(view: View, columns: list[str], characters: int) -> list:
    """One box per input; those that the model does not read are hidden."""
    boxes = []
    for column, box in view.inputs.items():
        boxes.append(
            gr.Textbox(
                label=box.label,
                placeholder=box.placeholder,
                lines=box.lines,
                max_lines=4 * box.lines,
                max_length=characters,
                visible=column in columns,
            )
        )
    return boxes


def options_for(encoders: Encoders, view: View, model: str) -> list[dict]:
    """The options of the view's outputs for a model."""
    return view.options(encoders.labels(view.kind, model))


def choose(encoders: Encoders, view: View, model: str) -> list:
    """Updates when another model is chosen: the boxes, the examples and the look of the outputs, which are emptied."""
    columns, rows = encoders.columns(view.kind, model), example_rows(encoders, view, model)
    updates = [gr.update(visible=column in columns) for column in view.inputs]
    updates.append(gr.update(samples=rows, sample_labels=example_names(rows)))
    empty = IDLE  # the first output is the heading
    for options in options_for(encoders, view, model):
        updates.append(gr.update(value=empty, **options))
        empty = None
    return updates


def fill(encoders: Encoders, view: View, model: str, index: int) -> list[str] | str:
    """The texts of an example. For a single output, Gradio takes the value and not a list of it."""
    row = example_rows(encoders, view, model)[index]
    return row if len(row) > 1 else row[0]
