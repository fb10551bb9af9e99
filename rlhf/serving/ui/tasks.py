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
from rlhf.serving.ui.endpoints import expose
from rlhf.serving.ui.texts import add_texts, label, language_of, tab_line, text, told

logger = logging.getLogger(__name__)

IDLE = ""
BARS = 10  # labels with a bar
SEARCHABLE = 10  # a list of more models than this can be searched
EXAMPLE_NAME = 60  # characters on the button of an example; Gradio cuts longer ones, inside a word
# Colours of types of entities.
COLOURS = (
    "#14b8a6", "#f59e0b", "#6366f1", "#f43f5e", "#84cc16", "#0ea5e9", "#d946ef", "#f97316", "#64748b", "#a16207",
)  # fmt: skip


TEXTS = {
    "tasks.classification": ("Classification", "분류"),
    "tasks.ner": ("Entities", "개체명"),
    "tasks.question_answering": ("Question answering", "질의응답"),
    "tasks.multiple_choice": ("Multiple choice", "객관식"),
    "tasks.classification.run": ("Classify", "분류하기"),
    "tasks.ner.run": ("Find entities", "개체명 찾기"),
    "tasks.question_answering.run": ("Answer", "답 찾기"),
    "tasks.multiple_choice.run": ("Choose", "고르기"),
    "tasks.model": ("Model", "모델"),
    "tasks.examples": ("Examples", "예시"),
    "tasks.text": ("Text", "텍스트"),
    "tasks.text.hint": ("A sentence or a paragraph", "문장이나 문단"),
    "tasks.text_pair": ("Second text", "두 번째 텍스트"),
    "tasks.text_pair.hint": ("What it is compared with", "비교할 텍스트"),
    "tasks.question": ("Question", "질문"),
    "tasks.question.hint": ("Who, what, when, where?", "누가, 무엇을, 언제, 어디서?"),
    "tasks.context": ("Context", "본문"),
    "tasks.context.hint": ("The text that may answer it", "답이 있을 수 있는 글"),
    "tasks.choices": ("Choices", "선택지"),
    "tasks.choices.hint": ("One per line", "한 줄에 하나씩"),
    "tasks.type": ("type", "종류"),
    "tasks.candidate": ("candidate", "후보"),
    "tasks.score": ("score", "점수"),
    "tasks.number": ("the number that the model gives this text", "모델이 이 텍스트에 준 값"),
    "tasks.no_label": ("No label", "레이블 없음"),
    "tasks.each_likely": ("each label is more likely than not", "각각 절반보다 높은 확률입니다"),
    "tasks.none_likely": ("none is likely", "확률이 높은 것이 없습니다"),
    "tasks.likeliest": (
        "the {shown} likeliest of {labels} labels",
        "레이블 {labels}개 중 확률이 높은 {shown}개",
    ),
    "tasks.entities.0": ("No entity", "개체명 없음"),
    "tasks.entities.1": ("1 entity", "개체명 1개"),
    "tasks.entities": ("{count} entities", "개체명 {count}개"),
    "tasks.unanswered": ("The text does not say", "본문에 답이 없습니다"),
    "tasks.score_is": ("score {score}", "점수 {score}"),
    "tasks.no_answer_is": ("no answer: {score}", "답 없음: {score}"),
    "tasks.line": (
        "Write a text, or pick an example below it, to see what the model predicts.",
        "글을 쓰거나 아래 예시를 고르면 모델의 예측이 보입니다.",
    ),
    "tasks.no_answer": ("(no answer)", "(답 없음)"),
    "tasks.failed": (
        "The model failed. The server's log says why.",
        "모델에 오류가 났습니다. 이유는 서버 로그에 있습니다.",
    ),
}
add_texts(TEXTS)


# ---- a prediction as values of the outputs -----------------------------------------------------------------------


def show_labels(row: dict, prediction: dict, language: str) -> tuple[str, dict[str, float] | None]:
    """(heading, probability of each label or None): one label, several, or a number."""
    named, probabilities = prediction["label"], prediction["probabilities"]
    # regression
    if isinstance(named, int | float):
        return heading(f"{named:.3f}", text("tasks.number", language)), None
    # any number of labels
    if isinstance(named, list) and named:
        title, notes = ", ".join(named), [text("tasks.each_likely", language)]
    elif isinstance(named, list):
        title, notes = text("tasks.no_label", language), [text("tasks.none_likely", language)]
    else:
        title, notes = named, [f"{probabilities[named]:.1%}"]
    if len(probabilities) > BARS:
        notes.append(text("tasks.likeliest", language, shown=BARS, labels=len(probabilities)))
    bars = dict(list(probabilities.items())[:BARS])
    return heading(title, ", ".join(notes)), bars


def show_entities(row: dict, prediction: dict, language: str) -> tuple[str, list, list]:
    """(heading, spans of the text, rows of the table)."""
    entities = sorted(prediction["entities"], key=lambda entity: entity["start"])
    marks, table = [], []
    for entity in entities:
        marks.append((entity["start"], entity["end"], entity["type"]))
        table.append([entity["type"], entity["text"], f"{entity['score']:.1%}"])
    key = f"tasks.entities.{len(entities)}" if len(entities) < 2 else "tasks.entities"
    title = text(key, language, count=len(entities))
    return heading(title, ""), spans(row["text"], marks), table


def show_answer(row: dict, prediction: dict, language: str) -> tuple[str, list, list]:
    """(heading, the context with the answer marked, rows of the table of candidates)."""
    note = text("tasks.score_is", language, score=f"{prediction['score']:.1%}")
    if prediction.get("no_answer") is not None:
        no_answer = text("tasks.no_answer_is", language, score=f"{prediction['no_answer']:.1%}")
        note = f"{note}; {no_answer}"
    title, marks = text("tasks.unanswered", language), []
    if prediction["answer"]:
        title = prediction["answer"]
        marks = [(prediction["start"], prediction["end"], "answer")]
    table = []
    for candidate in prediction["n_best"]:
        table.append(
            [candidate["answer"] or text("tasks.no_answer", language), f"{candidate['score']:.1%}"]
        )
    return heading(title, note), spans(row["context"], marks), table


def show_choices(row: dict, prediction: dict, language: str) -> tuple[str, dict[str, float]]:
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


def spans(whole: str, marks: list[tuple[int, int, str]]) -> list[tuple[str, str | None]]:
    """The text in pieces, marked or not; marks: (start, end, name) in order, without overlaps."""
    # HighlightedText wants the whole text, in order, unmarked pieces too.
    pieces, last = [], 0
    for start, end, name in marks:
        pieces += [(whole[last:start], None), (whole[start:end], name)]
        last = end
    pieces.append((whole[last:], None))
    return [(piece, name) for piece, name in pieces if piece]


def type_colours(labels: list[str]) -> dict[str, str]:
    """A colour for each type of entity, in the order of the labels. They repeat where there are more types than colours."""
    # B-person and I-person are one type; O is none.
    types = dict.fromkeys(label[2:] for label in labels if label[:2] in ("B-", "I-"))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(types)}


# ---- the views ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextInput:
    """A text box. lines: its height. Its texts are `tasks.COLUMN` and `tasks.COLUMN.hint`."""

    lines: int


@dataclass(frozen=True)
class View:
    """The tab of one task.

    kind: a key of TASKS, which is also the name of its endpoint.
    inputs: column -> text box. examples: texts to try with models whose run left none.
    show: (row, prediction, language) -> values of the outputs.
    outputs: makes the components, one set of options each. options: labels of a model -> these options.
    """

    kind: str
    inputs: dict[str, TextInput]
    examples: tuple[dict[str, str], ...]
    show: Callable[[dict, dict, str], tuple]
    outputs: Callable[..., list]
    options: Callable[[list[str]], list[dict]]


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
        inputs={
            "text": TextInput(lines=4),
            "text_pair": TextInput(lines=3),
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
        inputs={"text": TextInput(lines=4)},
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
        inputs={
            "question": TextInput(lines=1),
            "context": TextInput(lines=8),
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
        inputs={
            "text": TextInput(lines=3),
            "choices": TextInput(lines=5),
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


def ask(encoders: Encoders, view: View, language: str, model: str, *texts: str) -> tuple:
    """Values of the view's outputs for the texts, given in the order of view.inputs."""
    row = dict(zip(view.inputs, texts, strict=True))
    prediction = encoders.predict(view.kind, model, row)
    return view.show(row, prediction, language)


def guarded(call: Callable[[], tuple], outputs: int, language: str) -> list:
    """The values that `call` returns. An error takes the place of the heading and empties the other outputs, so that no
    old answer is left below a new text."""
    try:
        return list(call())
    except UserError as error:
        problem = told(error, language)
    # The message could hold a path of the server: only the log gets it.
    except Exception:
        logger.exception("the prediction failed")
        problem = text("tasks.failed", language)
    notice = f"<div class='verdict' role='alert'><span>{html.escape(problem)}</span></div>"
    return [notice, *[None] * (outputs - 1)]


def predict_plainly(encoders: Encoders, view: View, model: str, *texts: str) -> dict:
    """The prediction itself, for programs."""
    return encoders.predict(view.kind, model, dict(zip(view.inputs, texts, strict=True)))


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
        name = " / ".join(part for part in row if part)
        name = " ".join(name.split())  # choices are lines
        if len(name) > EXAMPLE_NAME:
            name = name[: EXAMPLE_NAME - 1]
            name = (name.rpartition(" ")[0] or name) + "…"  # at a word, if there is a space
        names.append(name)
    return names


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
    tab_line("tasks.line")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320, elem_classes="asked"):
            model = gr.Dropdown(
                models, value=first, label=label("tasks.model"), filterable=len(models) > SEARCHABLE
            )
            texts = text_boxes(view, encoders.columns(view.kind, first), encoders.characters)
            button = gr.Button(label(f"tasks.{view.kind}.run"), variant="primary")
            examples = gr.Dataset(
                components=texts,
                samples=rows,
                sample_labels=example_names(rows),
                type="index",
                label=label("tasks.examples"),
            )
        with gr.Column(scale=5, min_width=300, elem_classes="found"):
            outputs = view.outputs(*options_for(encoders, view, first))

    def predict(request: gr.Request, model: str, *texts: str) -> list:
        language = language_of(request)
        return guarded(lambda: ask(encoders, view, language, model, *texts), len(outputs), language)

    predict_options = {
        "inputs": [model, *texts],
        "outputs": outputs,
        "concurrency_limit": 4,
        "show_progress": "minimal",
        "api_visibility": "private",
    }
    at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    # Enter in any box does what the button does.
    submits = [text.submit for text in texts]
    gr.on([button.click, *submits], predict, api_name=f"{view.kind}_shown", **predict_options)
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
    named = {"model": (str, first)}
    for column in view.inputs:
        named[column] = (str, "")  # the predictor refuses an empty text that its model reads
    expose(
        partial(predict_plainly, encoders, view),
        named,
        dict,
        api_name=view.kind,
        api_description="The prediction of a model, with its scores.",
    )


def text_boxes(view: View, columns: list[str], characters: int) -> list:
    """One box per input; those that the model does not read are hidden."""
    boxes = []
    for column, box in view.inputs.items():
        boxes.append(
            gr.Textbox(
                label=label(f"tasks.{column}"),
                placeholder=label(f"tasks.{column}.hint"),
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
