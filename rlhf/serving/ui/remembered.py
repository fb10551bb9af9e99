"""Values of controls that the browser remembers, for the next visit and for the other tabs."""

import json

import gradio as gr

# A browser may have no storage, or forbid it: then the control starts with its default. gr.BrowserState ends in a page
# error there.
READ = """() => {
  try {
    const value = JSON.parse(localStorage.getItem(NAME));
    return typeof value === typeof DEFAULT ? value : DEFAULT;
  } catch { return DEFAULT; }
}"""
WRITE = """(value) => {
  try { localStorage.setItem(NAME, JSON.stringify(value)); } catch {}
}"""


def remember(page: gr.Blocks, control, changed, *, name: str, default: str | bool) -> None:
    """Fill the control when the page opens, and keep its value after each `changed`, such as `control.blur`.

    The value in the browser may be anything of the default's type, as whoever sits there can write it.
    """

    def script(text: str) -> str:
        return text.replace("NAME", json.dumps(name)).replace("DEFAULT", json.dumps(default))

    page.load(None, None, control, js=script(READ))
    changed(None, control, None, js=script(WRITE))
