"""The page: which tabs there are, in which order, and their texts."""

from types import SimpleNamespace

import gradio as gr

from rlhf.feedback.store import Store
from rlhf.serving.jobs.allowed import Allowed
from rlhf.serving.predictors import Encoders
from rlhf.serving.ui import page, texts


def names(service):
    return [tab.name for tab in page.shown_tabs(service)]


def test_tabs_come_in_order_and_only_with_what_they_need(service):
    assert names(service) == ["chat"]
    service.feedback = object()
    assert names(service) == ["chat", "compare", "rank", "data"]
    service.jobs = SimpleNamespace(allowed=Allowed())
    assert names(service) == ["chat", "compare", "rank", "runs", "data"]
    # Who serves this machine alone may push.
    service.jobs = SimpleNamespace(allowed=Allowed(anything=True))
    assert names(service) == ["chat", "compare", "rank", "runs", "data", "share"]
    service.jobs = SimpleNamespace(allowed=Allowed())
    service.engine.runs = {}
    assert names(service) == ["runs", "data"]


def test_the_page_is_private_and_has_every_text_in_both_languages(service):
    built = page.build_page(service)
    assert not built.analytics_enabled
    assert [block.id for block in built.blocks.values() if isinstance(block, gr.Tab)] == ["chat"]
    translations = built.i18n_instance.translations_dict
    for tab in page.TABS:
        assert translations["en"][f"page.{tab.name}"] != translations["ko"][f"page.{tab.name}"]
    for language in texts.LANGUAGES:
        assert all(translations[language].values())


def test_each_tab_says_in_one_line_what_to_do(service, tmp_path):
    service.feedback = Store(tmp_path)
    built = page.build_page(service)
    lines = []
    for block in built.blocks.values():
        if isinstance(block, gr.Markdown) and "tab-line" in block.elem_classes:
            lines.append(str(block.value))
    # The chat's is its welcome.
    names = ("compare.line", "rank.line", "data.line_both")
    assert len(lines) == len(names)
    for line, shown in zip(names, lines):
        assert f'"{line}"' in shown
        assert texts.text(line, "en") != texts.text(line, "ko")


def test_what_cannot_be_pressed_yet_is_not_shown(service, tmp_path):
    service.feedback = Store(tmp_path)
    built = page.build_page(service)
    hidden = set()
    for block in built.blocks.values():
        if isinstance(block, gr.Button) and not block.visible:
            hidden.add(block.elem_id)
    assert {"compare-left", "compare-tie", "rank-submit", "rank-skip"} <= hidden


def test_encoders_alone_are_shown_first(service, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    service.engine.runs = {}
    service.encoders = Encoders({"multiple_choice": {"m": str(tmp_path / "m")}})
    service.jobs = None
    service.feedback = Store(tmp_path / "feedback")
    built = page.build_page(service)
    outer = next(block for block in built.blocks.values() if isinstance(block, gr.Tabs))
    assert outer.selected == "multiple_choice"
