"""The box in which somebody allows that their feedback is published. It is empty until they tick it."""

import gradio as gr

from rlhf.serving.ui.remembered import remember
from rlhf.serving.ui.texts import label

TEXTS = {
    "consent.box": ("My feedback may be published", "내 피드백을 공개해도 됩니다"),
    "consent.help": (
        "With your messages and the answers. Without the tick it stays on this server.",
        "내 메시지와 답변도 함께 공개됩니다. 선택하지 않으면 이 서버에만 남습니다.",
    ),
}


def consent_box(page: gr.Blocks, elem_id: str) -> gr.Checkbox:
    """Build the box. The browser keeps the choice for the next visit, and for the other tabs."""
    box = gr.Checkbox(
        False, label=label("consent.box"), info=label("consent.help"), elem_id=elem_id
    )
    remember(page, box, box.input, name="rlhf-consent", default=False)
    return box


def is_given(value) -> bool:
    """True for a tick alone. The browser may send anything."""
    return value is True
