"""The page: which tabs there are, in which order, and their texts."""

import gradio as gr

from rlhf.serving.ui import page, texts


def names(service):
    return [tab.name for tab in page.shown_tabs(service)]


def test_tabs_come_in_order_and_only_with_what_they_need(service):
    assert names(service) == ["chat"]
    service.feedback = object()
    assert names(service) == ["chat", "compare", "rank", "data"]
    service.jobs = object()
    assert names(service) == ["chat", "compare", "rank", "runs", "data"]
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
