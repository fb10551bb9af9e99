"""The page: a tab for each kind of model that is served, or its one view."""

import gradio as gr

from rlhf.serving.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.ui import chat
from rlhf.serving.ui import tasks as encoders

CSS = chat.CSS + encoders.CSS
TITLE = "RLHF Models"
SUBTITLE = "Try the models you trained."


def build_page(engine: Engine, served: Encoders) -> gr.Blocks:
    """Chat alone is its own page; else each kind of encoder has its view, in tabs where there are several."""
    views = [view for view in encoders.VIEWS if served.runs.get(view.kind)]
    if not views:
        return chat.build_chat(engine)
    with chat.titled_page(TITLE, SUBTITLE) as page:
        if len(views) == 1 and not engine.runs:
            encoders.encoder_view(served, views[0])
            return page
        with gr.Tabs():
            if engine.runs:
                with gr.Tab("Chat", id="chat"):
                    chat.chat_view(engine, page)
            for view in views:
                with gr.Tab(view.title, id=view.kind):
                    encoders.encoder_view(served, view)
    return page
