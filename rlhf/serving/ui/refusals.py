"""Refusals of handlers: an error of the user becomes one that the page shows and a client gets."""

import html
from functools import wraps

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.ui import texts


def told(function):
    """The same function, whose refusals become errors for the page and for clients."""

    @wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except UserError as error:
            message = texts.told(error, texts.language_among([*args, *kwargs.values()]))
            # Gradio shows the message of an error as HTML.
            raise gr.Error(html.escape(message, quote=False), print_exception=False) from error

    return wrapped
