"""The page: its tabs, in order.

A tab is a module with `TEXTS`, `CSS` and `build(service, page)`. A tab whose parts the service lacks is not shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import gradio as gr

from rlhf.serving.service import Service
from rlhf.serving.ui import tasks, texts, theme

TITLE = "RLHF"
TEXTS = {
    "page.chat": ("Chat", "채팅"),
    "page.compare": ("Compare", "비교"),
    "page.rank": ("Rank", "순위"),
    "page.runs": ("Runs", "학습"),
    "page.data": ("Data", "데이터"),
}


@dataclass(frozen=True)
class Tab:
    """name: of its module in rlhf/serving/ui and of the tab. shown: does the service have what it needs?"""

    name: str
    shown: Callable[[Service], bool]


def can_chat(service: Service) -> bool:
    return bool(service.engine.runs)


def takes_feedback(service: Service) -> bool:
    return bool(service.engine.runs) and service.feedback is not None


def starts_runs(service: Service) -> bool:
    return service.jobs is not None


def has_data(service: Service) -> bool:
    return service.jobs is not None or service.feedback is not None


TABS = (
    Tab("chat", can_chat),
    Tab("compare", takes_feedback),
    Tab("rank", takes_feedback),
    Tab("runs", starts_runs),
    Tab("data", has_data),
)


def module_of(tab: Tab) -> ModuleType | None:
    """The module that builds a tab, if this installation has it."""
    # rlhf.serving.ui.NAME
    name = f"{__package__}.{tab.name}"
    if find_spec(name) is None:
        return None
    return import_module(name)


MODULES = {tab.name: module_of(tab) for tab in TABS}
CSS = theme.CSS + tasks.CSS  # Gradio takes one style sheet per page
for module in MODULES.values():
    if module is not None:
        CSS += module.CSS


def shown_tabs(service: Service) -> list[Tab]:
    """The tabs that the service can fill."""
    return [tab for tab in TABS if MODULES[tab.name] is not None and tab.shown(service)]


def build_page(service: Service) -> gr.Blocks:
    """Build the page: the tabs of the service, then one for each task of an encoder that is there."""
    texts.add_texts(TEXTS)
    texts.add_texts(tasks.TEXTS)
    # Tabs add their own texts when they are built.
    encoders = service.encoders
    with theme.titled_page(TITLE) as page:
        with gr.Tabs():
            for tab in shown_tabs(service):
                module = MODULES[tab.name]
                texts.add_texts(module.TEXTS)
                with gr.Tab(texts.label(f"page.{tab.name}"), id=tab.name):
                    module.build(service, page)
            for view in tasks.VIEWS:
                if encoders.runs.get(view.kind):
                    with gr.Tab(texts.label(f"tasks.{view.kind}"), id=view.kind):
                        tasks.encoder_view(encoders, view)
    page.i18n_instance = texts.i18n()  # what mount_gradio_app(i18n=) would set
    return page
