"""Converts the conversations of other projects to our messages, for demonstrations and for rated answers alike.

A turn is {from, value} (ShareGPT), {role, content} (OpenAI) or, where only the assistant can speak, a string. The
contents are looked at later, by the check of rows. A turn that cannot be converted raises UserError("column: reason").

Omitted: turns and columns with tools, which GPT-2 class models do not have. A row with them is refused.
"""

from rlhf.data.rows import WEIGHTS, more_than_text, weight_of, weight_problem, without
from rlhf.errors import UserError


class Dropped(str):
    """The reason why a part of a foreign row is passed over. It is in the list of rows, and is counted."""


# Columns that hold the system message of a conversation.
SYSTEM = ("system", "system_prompt")

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


def is_turn(value) -> bool:
    return isinstance(value, dict) and ("from" in value or "role" in value)


def is_turns(value) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_turn, value))


def to_messages(turns, column: str) -> list[dict]:
    """Messages with role and content of a list of turns."""
    if not is_turns(turns):
        raise UserError(
            f"{column}: a list of turns {{from, value}} or {{role, content}} is expected, {turns!r:.60} given"
        )
    return [_message(turn, column) for turn in turns]


def _message(turn: dict, column: str) -> dict:
    speaker = str(turn.get("from", turn.get("role")))
    role = SPEAKERS.get(speaker)
    if role is None:
        raise UserError(
            f"{column}: unknown speaker {speaker!r}, allowed: {', '.join(SPEAKERS)} (calls of tools cannot be learned)"
        )
    reason = more_than_text(turn)
    if reason:
        raise UserError(f"{column}: {reason}")
    return {"role": role, "content": turn.get("value", turn.get("content"))}


def to_answer(value, column: str):
    """The text of an answer: a string, one turn of the assistant, or a list of one such turn."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not is_turn(value):
        return value  # a string, or to be refused by the check of rows
    message = _message(value, column)
    if message["role"] != "assistant":
        raise UserError(f"{column}: an answer of the assistant is expected, {value!r:.60} given")
    return message["content"]


def with_system(messages: list[dict], row: dict) -> list[dict]:
    """The messages with the column `system` (or `system_prompt`) of a row in front, where it has one."""
    given = _system_columns(row)
    if not given:
        return messages
    column, system = next(iter(given.items()))
    message = {"role": "system", "content": system}
    starts_alike = messages[:1] == [message]
    has_own = bool(messages) and messages[0].get("role") == "system"
    if has_own and not starts_alike or any(other != system for other in given.values()):
        raise UserError(
            f"{column}: the conversation begins with a system message of its own: keep one"
        )
    if starts_alike:
        return messages
    return [message, *messages]


PICTURES = ("images", "videos", "audios")  # LLaMA-Factory's columns


def refuse_more_than_text(row: dict) -> None:
    """UserError where a row has tools, pictures or settings of the chat template next to its conversation."""
    refuse_tools(row)
    if row.get("chat_template_kwargs"):
        raise UserError(
            "chat_template_kwargs: settings of a row are not read: write them into the template, as in "
            "{% set enable_thinking = false %}, and remove the column"
        )
    for column in PICTURES:
        if isinstance(row.get(column), list) and row[column]:
            raise UserError(
                f"{column}: pictures and sound cannot be read here, {row[column]!r:.60} given"
            )


def _system_columns(row: dict) -> dict[str, str]:
    """The columns with a system message that is not blank."""
    given = {}
    for column in SYSTEM:
        value = row.get(column)
        if value and not isinstance(value, str):
            raise UserError(
                f"{column}: a system message is expected, {value!r:.60} given: if it is something else, rename it, as in "
                f"columns: {{topic: {column}}}"
            )
        if value and value.strip():
            given[column] = value
    return given


def join_system(row: dict, column: str) -> dict:
    """A row of ours with its system message, which is a column of its own, at the start of `column`.

    column: the one with the conversation, prompt or messages.
    """
    messages = row.get(column)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not _system_columns(row) or not is_turns(messages):
        return row  # without a conversation, the check of rows refuses it
    return {**without(row, *SYSTEM), column: with_system(messages, row)}


def refuse_tools(row: dict) -> None:
    """UserError where the row describes tools, whose calls its answers may hold. "" and "[]" mean none."""
    tools = row.get("tools") or row.get("functions")
    if isinstance(tools, str):
        tools = tools.strip() not in ("", "[]", "{}", "null")
    if tools:
        raise UserError(
            "tools: calls of tools cannot be learned here: drop such rows (skip_bad: true)"
        )


# ---- demonstrations --------------------------------------------------------------------------------------------------


def from_sharegpt(row: dict) -> list[dict]:
    """{conversations: [{from, value}, ...]} with human / gpt / system, maybe {system} for the first message."""
    refuse_tools(row)
    turns = row["conversations"]
    messages = with_system(to_messages(turns, "conversations"), row)
    for i, turn in enumerate(turns):
        if _is_unlearned(turn):
            raise UserError(f"conversations: message {i}: {weight_problem(turn)}")
    return [{**without(row, "conversations", *SYSTEM, "tools"), "messages": messages}]


def has_turns(row: dict) -> bool:
    return is_turns(row["conversations"])


def from_weighted(row: dict) -> list[dict]:
    """A conversation some of whose answers have weight 0 and are not learned: one row for each learned answer.

    OpenAI calls the key `weight`, Axolotl also `train` and `training`, and ms-swift `loss`.
    """
    refuse_tools(row)
    column = conversation_column(row)
    messages = to_messages(row[column], column)
    rest = without(row, column, "tools", "functions", "parallel_tool_calls")
    rows = []
    for i, turn in enumerate(row[column]):
        if messages[i]["role"] != "assistant":
            continue
        key, weight = weight_of(turn)
        if weight not in (0, 1):
            raise UserError(f"{column}: message {i}: {key} {weight!r} must be 0 or 1")
        if weight == 0:
            rows.append(Dropped(f"answers with {key} {weight!r}"))
        else:
            answer = messages[i]["content"]
            rows.append({**rest, "prompt": messages[:i], "completion": answer})
    return rows


def has_weights(row: dict) -> bool:
    """True if an answer has a weight of 0. With no other weight than 1 the rows are ours as they are."""
    turns = row[conversation_column(row)]
    return is_turns(turns) and any(map(_is_unlearned, turns))


def _is_unlearned(turn: dict) -> bool:
    """True for an answer of weight 0. What users say is never learned, and a mask for it says nothing."""
    speaker = turn.get("from", turn.get("role"))
    is_answer = isinstance(speaker, str) and SPEAKERS.get(speaker) == "assistant"
    return is_answer and weight_of(turn)[1] == 0


def conversation_column(row: dict) -> str:
    if "conversations" in row:
        return "conversations"
    return "messages"


def has_messages(row: dict) -> bool:
    return is_turns(row["messages"])


def from_openai_tools(row: dict) -> list[dict]:
    """OpenAI's {messages, tools}: rows whose tools are empty are ours, and the others are refused."""
    refuse_tools(row)
    messages = to_messages(row["messages"], "messages")
    # The check of rows looks at the weights, which messages of ours do not have.
    for message, turn in zip(messages, row["messages"], strict=True):
        message.update({key: turn[key] for key in WEIGHTS if key in turn})
    return [{**without(row, "tools", "functions"), "messages": messages}]
