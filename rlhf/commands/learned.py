"""Shows what a recipe learns from rows: a sentence for each kind, and rows with the learned part in [[ ]].

With a tokenizer, rows for SFT are shown as the model reads them: their token ids, decoded, with the template's marks.
"""

from itertools import groupby

from rlhf.data.chat import add_chat_template, as_messages, encode_examples
from rlhf.data.rows import KINDS, number, shorten, thumb
from rlhf.errors import UserError
from rlhf.task_table import TASKS

TEXT_SHOWN = 240  # characters of one text
IDS_SHOWN = 300  # tokens of one row
LEARNED_BY_SFT = ("prompt_completion", "messages", "text")

SENTENCES = {
    "ranking": (
        "reward and dpo: which of two answers is better, for each pair with different ranks; ilql: the score of each answer"
    ),
    "preference": "reward, dpo and ilql: that chosen is better than rejected",
    "unpaired_preference": (
        "kto and ilql: to give more of the answers with the label true, and fewer of the others; sft with good_answers: "
        "true learns the good ones, and reward or dpo with rank_by: label learns from prompts with good and bad ones"
    ),
    "scored": "ilql: which answers score more; sft: every completion, whatever its score",
    "prompt_completion": "sft: the completion; the prompt is only read",
    "messages": "sft: the assistant's turns; the others are only read",
    "prompt": "ppo: the policy's own answers to the prompt; no answer of the file is learned",
    "text": "pretrain and sft: the whole text; tokenizer: its words",
}


def learned_part(kind: str) -> str:
    """The recipes that read a kind of row, and the part of it that they learn."""
    if kind in SENTENCES:
        return SENTENCES[kind]
    for name, task in TASKS.items():
        if kind in task.trained_on:
            read = [column for column in KINDS[kind].columns if column != task.answer]
            return f"{name}: {task.answer}, from {' and '.join(read)}"
    return "nothing: predict reads it"


def show_row(row: dict, kind: str, tokenizer=None) -> list[str]:
    """The lines of a row with the learned part in [[ ]]."""
    if tokenizer is not None and kind in LEARNED_BY_SFT:
        try:
            return _decoded(row, kind, tokenizer)
        except UserError as error:
            return [f"cannot be encoded: {error}"]
    if kind in SHOWN:
        return SHOWN[kind](row)
    return _task_row(row, kind)


# ---- token ids -------------------------------------------------------------------------------------------------------


def _decoded(row: dict, kind: str, tokenizer) -> list[str]:
    """The examples of a row as sft.py encodes them, decoded again."""
    add_chat_template(tokenizer)
    row = {column: row[column] for column in KINDS[kind].columns}
    return [_decoded_ids(tokenizer, ids, mask) for ids, mask in encode_examples(tokenizer, row)]


def _decoded_ids(tokenizer, ids: list[int], mask: list[bool]) -> str:
    """The text of token ids. Each learned run of tokens (mask: True) is in [[ ]]."""
    pairs = list(zip(ids, mask, strict=True))[:IDS_SHOWN]
    text = ""
    for is_learned, run in groupby(pairs, key=lambda pair: pair[1]):
        part = tokenizer.decode([token for token, _ in run])
        if is_learned:
            part = _mark(part)
        text += part
    more = len(ids) - len(pairs)
    if more:
        text += f" ... and {more} tokens more"
    return text.replace("\n", "\\n")


# ---- texts -----------------------------------------------------------------------------------------------------------


def _mark(text: str) -> str:
    return f"[[{text}]]"


def _short(text) -> str:
    return shorten(str(text).replace("\n", "\\n"), TEXT_SHOWN)


def _prompt(row: dict) -> list[str]:
    return [
        f"{message['role']}: {_short(message['content'])}" for message in as_messages(row["prompt"])
    ]


def _prompt_completion(row: dict) -> list[str]:
    return [*_prompt(row), f"assistant: {_mark(_short(row['completion']))}"]


def _messages(row: dict) -> list[str]:
    lines = []
    for message in as_messages(row["messages"]):
        text = _short(message["content"])
        if message["role"] == "assistant":
            text = _mark(text)
        lines.append(f"{message['role']}: {text}")
    return lines


def _preference(row: dict) -> list[str]:
    chosen, rejected = _mark(_short(row["chosen"])), _mark(_short(row["rejected"]))
    return [*_prompt(row), f"better: {chosen}", f"worse: {rejected}"]


def _ranking(row: dict) -> list[str]:
    answers = sorted(zip(row["ranks"], row["completions"], strict=True))
    return [*_prompt(row), *(f"rank {rank}: {_mark(_short(text))}" for rank, text in answers)]


def _unpaired(row: dict) -> list[str]:
    rating = {True: "good", False: "bad"}[thumb(row["label"])]
    return [*_prompt(row), f"assistant ({rating}): {_short(row['completion'])}"]


def _scored(row: dict) -> list[str]:
    return [
        *_prompt(row),
        f"assistant (score {number(row['score']):g}): {_short(row['completion'])}",
    ]


def _task_row(row: dict, kind: str) -> list[str]:
    """A row of an encoder task: its columns, with the answer marked."""
    answers = {task.answer for task in TASKS.values() if kind in task.trained_on}
    lines = []
    for column in KINDS[kind].columns:
        value = row[column]
        if column in ("tokens", "tags"):  # one tag for each token
            value = " ".join(value)
        text = _short(value)
        if column in answers:
            text = _mark(text)
        lines.append(f"{column}: {text}")
    return lines


SHOWN = {
    "prompt": _prompt,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "preference": _preference,
    "ranking": _ranking,
    "unpaired_preference": _unpaired,
    "scored": _scored,
    "text": lambda row: [f"text: {_mark(_short(row['text']))}"],
}
