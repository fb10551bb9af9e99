"""The page: one tab per kind of model, or a single view if only one kind is served."""

import gradio as gr

from rlhf.serving.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.ui import chat
from rlhf.serving.ui import tasks as encoders

CSS = chat.CSS + encoders.CSS  # Gradio takes one style sheet per page
TITLE = "RLHF Models"
SUBTITLE = "Try the models you trained."


def build_page(engine: Engine, served: Encoders) -> gr.Blocks:
    """Build the chat page, or the page of the encoders, with tabs if there is more than one view."""
    views = [view for view in encoders.VIEWS if served.runs.get(view.kind)]
    if not views:
        return chat.build_chat(engine)
    with chat.titled_page(TITLE, SUBTITLE) as page:
        if len(views) == 1 and not engine.runs:  # one tab alone would be noise
            encoders.encoder_view(served, views[0])
            return page
        with gr.Tabs():
            if engine.runs:
                with gr.Tab("Chat", id="chat"):
                    chat.chat_view(engine, page)
            for view in views:
                with gr.Tab(view.name, id=view.action):
                    encoders.encoder_view(served, view)
    return page
