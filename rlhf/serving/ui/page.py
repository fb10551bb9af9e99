"""The page: its tabs, in order. A tab is a module with `TEXTS`, `CSS` and `build(service, page)`."""

import gradio as gr

from rlhf.serving.service import Service
from rlhf.serving.ui import chat, tasks, texts, theme

CSS = theme.CSS + chat.CSS + tasks.CSS  # Gradio takes one style sheet per page
TITLE = "RLHF Chat"
SUBTITLE = "Talk to the models you trained, and feel what each stage changed."
TITLE_WITHOUT_CHAT = "RLHF Models"
SUBTITLE_WITHOUT_CHAT = "Try the models you trained."


def build_page(service: Service) -> gr.Blocks:
    """Build the page, with tabs if there is more than one view."""
    engine, encoders = service.engine, service.encoders
    views = [view for view in tasks.VIEWS if encoders.runs.get(view.kind)]
    title, subtitle = TITLE, SUBTITLE
    if not engine.runs:
        title, subtitle = TITLE_WITHOUT_CHAT, SUBTITLE_WITHOUT_CHAT
    with theme.titled_page(title, subtitle) as page:
        with gr.Tabs():
            if engine.runs:
                with gr.Tab("Chat", id="chat"):
                    chat.build(service, page)
            for view in views:
                with gr.Tab(view.title, id=view.kind):
                    tasks.encoder_view(encoders, view)
    return page


__all__ = ["CSS", "build_page", "texts"]
