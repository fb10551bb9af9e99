"""The look of every page: fonts that work offline, colours, the heading."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio when it is imported

import gradio as gr  # noqa: E402

FONTS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Noto Sans",
    "Noto Sans KR",
    "sans-serif",
)
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Liberation Mono", "monospace")

CSS = """
.gradio-container > .main {max-width: 1440px !important; width: 100% !important; margin: 0 auto !important;}
.gradio-container main.app {padding: 10px 20px 4px !important;}
#header {position: absolute; right: 8px; top: -10px; pointer-events: none; width: auto !important; z-index: 1;}
#header h1 {font-size: 0.95rem; font-weight: 650; letter-spacing: 0.02em; margin: 0; color: var(--body-text-color-subdued);}
.tabitem {padding: 12px 0 0 !important; border: none !important;}
button[role="tab"].selected {color: var(--primary-700) !important;}
.dark button[role="tab"].selected {color: var(--primary-400) !important;}
/* targets of at least 24 pixels */
.gradio-container .token-remove {
  min-width: 24px; min-height: 24px; display: inline-flex; align-items: center; justify-content: center;
}
.gradio-container .label-wrap {min-height: 28px; align-items: center;}
.gradio-container :is(input[role="combobox"], input[type="number"], .reset-button) {min-height: 24px;}
footer {padding: 2px 0 4px !important; margin: 0 !important; font-size: 0.78rem;}
footer .divider {display: none !important;}
@media (max-width: 640px) {.gradio-container main.app {padding: 6px 10px 2px !important;} #header {display: none;}}
"""


def theme() -> gr.themes.Base:
    """A calm theme that works offline: it uses system fonts only."""
    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=FONTS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_shadow="none",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_label_text_color="*neutral_500",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="500",
        body_text_color_subdued="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        input_shadow="none",
        input_border_width="1px",
        input_border_color="*neutral_200",
        # White on the 600 of teal has a contrast of 3.7; on the 700 it has 5.5.
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        slider_color="*primary_500",
    )


@contextmanager
def titled_page(title: str) -> Iterator[gr.Blocks]:
    """A page with a heading; components built inside the `with` block come below it."""
    with gr.Blocks(
        title=title,
        fill_height=True,
        analytics_enabled=False,
        delete_cache=(86400, 86400),  # every day, files older than a day
    ) as page:
        gr.HTML(f"<h1>{title}</h1>", elem_id="header", js_on_load=None, apply_default_css=False)
        yield page
