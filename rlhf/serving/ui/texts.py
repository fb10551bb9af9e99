"""The texts of the app in English and Korean.

Each tab has a table TEXTS: key -> (English, Korean); a key begins with the name of its tab. `page.py` joins the tables.
A component takes `label("chat.send")`, which the browser translates. Text that Python writes into HTML or into an error
is `text("chat.send", language)`, with `language_of(request)`.
"""

import gradio as gr
from gradio.i18n import I18nData

from rlhf.errors import UserError
from rlhf.serving.ui.refusal_texts import in_korean

LANGUAGES = ("en", "ko")
TABLE: dict[str, tuple[str, ...]] = {}


class Refusal(UserError):
    """An error for the user whose text the app has in each language. str() of it is English."""

    def __init__(self, key: str, **values):
        super().__init__(text(key, LANGUAGES[0], **values))
        self.key = key
        self.values = values


def add_texts(table: dict[str, tuple[str, str]]) -> None:
    """Add a tab's texts to those of the app."""
    TABLE.update(table)


def text(key: str, language: str, **values) -> str:
    """The text of a key, with its {names} filled in."""
    return TABLE[key][LANGUAGES.index(language)].format(**values)


def told(error: UserError, language: str) -> str:
    """The message of an error, in the user's language if the app has it."""
    if isinstance(error, Refusal):
        return text(error.key, language, **error.values)
    return said(str(error), language)


def said(message: str, language: str) -> str:
    """A message of a lower layer, in the user's language if the app has it."""
    return in_korean(message) if language == "ko" else message


def label(key: str):
    """The text of a key for a component's property: the browser shows it in its own language."""
    return I18nData(key)


def tab_line(key: str) -> gr.Markdown:
    """The quiet line at the top of a tab: what to do here."""
    return gr.Markdown(label(key), elem_classes="tab-line")


def language_of(request: gr.Request | None) -> str:
    """The first language of the browser that the app has, from the Accept-Language header; English if there is none."""
    # "ko-KR,ko;q=0.9,en;q=0.8": browsers name them in the order of preference.
    accepted = (request.headers.get("accept-language") or "") if request is not None else ""
    for part in accepted.lower().split(","):
        name = part.split(";")[0].strip().split("-")[0]
        if name in LANGUAGES:
            return name
    return LANGUAGES[0]


def language_among(values) -> str:
    """The language of the gr.Request among the arguments of a handler."""
    for value in values:
        if isinstance(value, gr.Request):
            return language_of(value)
    return LANGUAGES[0]


def i18n() -> gr.I18n:
    """All texts, as Gradio wants them."""
    by_language = {}  # language -> key -> text
    for i, language in enumerate(LANGUAGES):
        by_language[language] = {key: texts[i] for key, texts in TABLE.items()}
    return gr.I18n(**by_language)
