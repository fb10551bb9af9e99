"""Converts instructions and questions of other projects to our rows: Alpaca, Self-Instruct, ChatbotData.

Omitted: Alpaca's wrapper "Below is an instruction ...", because the chat template does that job.
"""

from rlhf.data.chat import Prompt
from rlhf.data.conversations import SYSTEM, refuse_tools, with_system
from rlhf.data.rows import without
from rlhf.errors import UserError

ALPACA = ("instruction", "input", *SYSTEM, "history", "tools")  # what is in the prompt


def from_alpaca(row: dict) -> list[dict]:
    """{instruction, input, output}: the input follows the instruction after an empty line. Maybe {system}."""
    ours = {"prompt": alpaca_prompt(row), "completion": row["output"]}
    return [{**_rest(row, "output"), **ours}]


def from_dolly(row: dict) -> list[dict]:
    """Dolly's {instruction, context, response}: as Alpaca's input and output."""
    rest = without(row, "context", "response")
    return from_alpaca({**rest, "input": row["context"], "output": row["response"]})


def from_alpaca_history(row: dict) -> list[dict]:
    """Alpaca's row with {history: [[question, answer], ...]}: all answers are learned, as LLaMA-Factory does."""
    messages = _alpaca_messages(row)
    messages.append({"role": "assistant", "content": row["output"]})
    return [{**_rest(row, "output"), "messages": messages}]


def _rest(row: dict, *used: str) -> dict:
    return without(row, *ALPACA, *used)


def alpaca_prompt(row: dict) -> Prompt:
    """The prompt as a string, or as messages where the row has a system message or a history."""
    messages = _alpaca_messages(row)
    if len(messages) == 1:
        return messages[0]["content"]
    return messages


def _alpaca_messages(row: dict) -> list[dict]:
    refuse_tools(row)
    messages = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise UserError(f"history: a list of pairs is expected, {history!r:.60} given")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UserError(
                f"history: pairs of question and answer are expected, {turn!r:.60} given"
            )
        question, answer = turn
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    instruction = _instruction(row["instruction"], row.get("input"))
    messages.append({"role": "user", "content": instruction})
    return with_system(messages, row)


def from_instances(row: dict) -> list[dict]:
    """Self-Instruct's {instruction, instances: [{input, output}, ...]}: one row for each instance."""
    rest = without(row, "instruction", "instances")
    instances = row["instances"]
    if not isinstance(instances, list) or not all(map(_has_output, instances)):
        raise UserError(
            f"instances: a list of {{input, output}} is expected, {instances!r:.60} given"
        )
    rows = []
    for instance in instances:
        prompt = _instruction(row["instruction"], instance.get("input"))
        rows.append({**rest, "prompt": prompt, "completion": instance["output"]})
    return rows


def _has_output(instance) -> bool:
    return isinstance(instance, dict) and "output" in instance


def _instruction(instruction: str, text: str | None) -> str:
    for part in (instruction, text):
        if part and not isinstance(part, str):
            return part  # which the check of rows refuses
    if instruction and text:
        return f"{instruction}\n\n{text}"
    return instruction or text  # either may be "" or None


def from_question_answer(row: dict) -> list[dict]:
    """ChatbotData.csv's {Q, A, label}: the label (its topic) is kept as an extra column."""
    return [{**without(row, "Q", "A"), "prompt": row["Q"], "completion": row["A"]}]
