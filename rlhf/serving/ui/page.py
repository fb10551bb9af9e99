"""The page: one tab per kind of model, or a single view if only one kind is served."""

import gradio as gr

from rlhf.serving.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.ui import chat, tasks

CSS = chat.CSS + tasks.CSS  # Gradio takes one style sheet per page
TITLE = "RLHF Models"
SUBTITLE = "Try the models you trained."


def build_page(engine: Engine, encoders: Encoders) -> gr.Blocks:
    """Build the chat page, or the page of the encoders, with tabs if there is more than one view."""
    views = [view for view in tasks.VIEWS if encoders.runs.get(view.kind)]
    if not views:
        return chat.build_chat(engine)
    with chat.titled_page(TITLE, SUBTITLE) as page:
        if len(views) == 1 and not engine.runs:  # one tab alone would be noise
            tasks.encoder_view(encoders, views[0])
            return page
        with gr.Tabs():
            if engine.runs:
                with gr.Tab("Chat", id="chat"):
                    chat.chat_view(engine, page)
            for view in views:
                with gr.Tab(view.title, id=view.kind):
                    tasks.encoder_view(encoders, view)
    return page
