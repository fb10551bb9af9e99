"""Refusals of handlers: an error of the user becomes one that the page shows and a client gets."""

import html
from functools import wraps

import gradio as gr

from rlhf.errors import UserError


def told(function):
    """The same function, whose refusals become errors for the page and for clients."""

    @wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except UserError as error:
            # Gradio shows the message of an error as HTML.
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    return wrapped
