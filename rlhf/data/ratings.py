"""Converts rated answers of other projects to preferences, thumbs (unpaired preferences) and rankings.

Each function takes a foreign row and returns our rows, or takes all rows of a file where the answers of one prompt are
in several rows. What has no rating to learn from is returned as Dropped, and is counted.
"""

import json
import re
from collections.abc import Iterable, Iterator

from rlhf.data.conversations import (
    SYSTEM,
    Dropped,
    conversation_column,
    is_turn,
    is_turns,
    refuse_tools,
    to_answer,
    to_messages,
    with_system,
)
from rlhf.data.instructions import ALPACA, alpaca_prompt
from rlhf.data.rows import number, thumb, without
from rlhf.errors import UserError

Located = tuple[str, dict]  # where a row is in its file, and the row
OPENAI_PAIR = ("input", "preferred_output", "non_preferred_output")

# ---- two answers of one prompt ---------------------------------------------------------------------------------------


def from_turns_pair(row: dict) -> list[dict]:
    """LLaMA-Factory's {conversations or messages, chosen, rejected}: each answer is one turn, or a string."""
    column = conversation_column(row)
    refuse_tools(row)
    pair = {
        "prompt": with_system(to_messages(row[column], column), row),
        "chosen": to_answer(row["chosen"], "chosen"),
        "rejected": to_answer(row["rejected"], "rejected"),
    }
    return [{**pair, **without(row, column, *SYSTEM, "tools", *pair)}]


def has_turns_pair(row: dict) -> bool:
    """One turn or string for each answer after a conversation, which is not repeated in the answers."""
    return is_turns(row[conversation_column(row)]) and _are_answers(row)


def _are_answers(row: dict) -> bool:
    for column in ("chosen", "rejected"):
        answer = row[column]
        is_one_turn = is_turn(answer) or (is_turns(answer) and len(answer) == 1)
        if not is_one_turn and not isinstance(answer, str):
            return False
    return True


def from_alpaca_pair(row: dict) -> list[dict]:
    """LLaMA-Factory's {instruction, input, chosen, rejected}, maybe {system, history}, which are part of the prompt."""
    pair = {
        "prompt": alpaca_prompt(row),
        "chosen": to_answer(row["chosen"], "chosen"),
        "rejected": to_answer(row["rejected"], "rejected"),
    }
    return [{**pair, **without(row, *ALPACA, *pair)}]


def from_openai_pair(row: dict) -> list[dict]:
    """OpenAI's {input: {messages}, preferred_output: [message], non_preferred_output: [message]}."""
    given = row["input"]
    if not isinstance(given, dict):
        raise UserError(f"input: {{messages: [...]}} is expected, {given!r:.60} given")
    refuse_tools(given)
    pair = {
        "prompt": to_messages(given.get("messages"), "input: messages"),
        "chosen": to_answer(row["preferred_output"], "preferred_output"),
        "rejected": to_answer(row["non_preferred_output"], "non_preferred_output"),
    }
    return [{**without(row, *OPENAI_PAIR), **pair}]


def from_dialogues(row: dict) -> list[dict]:
    """Two whole conversations {chosen, rejected}: the turns that they share are the prompt.

    TRL calls this an implicit prompt. UltraFeedback repeats the prompt in a column, which must say the same.
    """
    chosen = to_messages(row["chosen"], "chosen")
    rejected = to_messages(row["rejected"], "rejected")
    pair = _split_dialogues(chosen, rejected)
    if "prompt" in row:
        _check_prompt(row["prompt"], pair["prompt"])
    rest = without(row, "prompt", "chosen", "rejected")
    if is_turns(row.get("messages")):
        rest = without(rest, "messages")  # UltraFeedback's copy of the chosen conversation
    return [{**pair, **rest}]


def _check_prompt(prompt, shared: list[dict]) -> None:
    """UserError where a prompt is neither the turns that two conversations share nor the last of them."""
    expected = [shared, shared[-1:]]
    if is_turns(prompt):
        given = to_messages(prompt, "prompt")
    else:
        given = [{"role": "user", "content": prompt}]
        expected.append(shared[:1])  # the first question of a longer conversation
    if given not in expected:
        raise UserError(
            f"prompt: {prompt!r:.60} is not what chosen and rejected begin with: {shared!r:.60}"
        )


def has_dialogues(row: dict) -> bool:
    """Tells whole conversations from answers, which are a string or a list with one message."""
    lists = [row["chosen"], row["rejected"]]
    return all(is_turns(turns) and len(turns) > 1 for turns in lists)


TURN = re.compile(r"\n\n(Human|Assistant):")
# As Dahoas/full-hh-rlhf and trl's scripts have it.
HH_PROMPT = re.compile(r"\s*Human:.*\n\nAssistant:\s*", re.DOTALL)


def from_hh(row: dict) -> list[dict]:
    """HH-RLHF's two whole dialogues: the turns that they share are the prompt, and their last turns are the answers."""
    chosen = _hh_turns(row["chosen"], "chosen")
    rejected = _hh_turns(row["rejected"], "rejected")
    return [{**_split_dialogues(chosen, rejected), **without(row, "chosen", "rejected")}]


def _split_dialogues(chosen: list[dict], rejected: list[dict]) -> dict:
    """{prompt, chosen, rejected} of two conversations."""
    shared = 0  # turns at the start that are the same in both
    for first, second in zip(chosen, rejected, strict=False):
        if first != second:
            break
        shared += 1
    if 0 < shared == len(chosen) == len(rejected):
        shared -= 1  # the answers are the same too, which the check of rows says
    return {
        "prompt": chosen[:shared],
        "chosen": _only_answer(chosen[shared:], "chosen"),
        "rejected": _only_answer(rejected[shared:], "rejected"),
    }


def _only_answer(turns: list[dict], column: str) -> str:
    """The text of the turns of a dialogue that the other one does not have. They must be one answer."""
    if [turn["role"] for turn in turns] != ["assistant"]:
        raise UserError(
            f"{column}: one answer after the shared turns is expected, {len(turns)} turns given"
        )
    return turns[0]["content"]


def _hh_turns(dialogue: str, column: str) -> list[dict]:
    before, *parts = TURN.split(dialogue)  # speaker, text, speaker, text, ...
    if before.strip() or not parts:
        raise UserError(
            f"{column}: a dialogue that begins with '\\n\\nHuman:' is expected, {dialogue!r:.60} given"
        )
    turns: list[dict] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = "assistant"
        if speaker == "Human":
            role = "user"
        if turns and turns[-1]["role"] == role:
            # The same speaker twice in a row is one turn, because chat templates want turns to alternate.
            turns[-1]["content"] += "\n\n" + text.strip()
        else:
            turns.append({"role": role, "content": text.strip()})
    return turns


def split_hh_prompt(row: dict) -> dict:
    """A row whose prompt is a whole dialogue of HH-RLHF, up to where the assistant answers, with its turns as messages."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not HH_PROMPT.fullmatch(prompt):
        return row
    asked = prompt.strip().removesuffix("\n\nAssistant:")
    turns = _hh_turns(f"\n\n{asked}", "prompt")
    return {**row, "prompt": turns}


def has_hh_dialogues(row: dict) -> bool:
    """Tells HH-RLHF's dialogues from the answers of a preference, whose columns have the same names."""
    if "prompt" in row:
        return False
    for column in ("chosen", "rejected"):
        if not isinstance(row[column], str) or not TURN.search(row[column]):
            return False
    return True


# ---- thumbs ----------------------------------------------------------------------------------------------------------

THUMBS = ("label", "kto_tag")


def thumb_column(row: dict) -> str | None:
    """The column that rates the answer of a row with true or false."""
    for column in THUMBS:
        if thumb(row.get(column)) is not None:
            return column
    return None


def has_thumb(row: dict) -> bool:
    return thumb_column(row) is not None


def has_rated_turns(row: dict) -> bool:
    """A conversation with a thumb: the label of a text, which is not a conversation, is something else."""
    return is_turns(row[conversation_column(row)]) and has_thumb(row)


def from_turns_thumb(row: dict) -> list[dict]:
    """LLaMA-Factory's KTO rows {conversations or messages, label or kto_tag}: the last answer is the rated one."""
    column = conversation_column(row)
    refuse_tools(row)
    messages = with_system(to_messages(row[column], column), row)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{column}: the rated answer is expected at the end, a user turn given")
    rest = without(row, column, *SYSTEM, "tools", *THUMBS)
    answer = {"completion": messages[-1]["content"], "label": _thumb(row)}
    return [{**rest, "prompt": messages[:-1], **answer}]


def from_alpaca_thumb(row: dict) -> list[dict]:
    """LLaMA-Factory's KTO rows in Alpaca's form: {instruction, input, output, label or kto_tag}."""
    rest = without(row, *ALPACA, "output", *THUMBS)
    answer = {"completion": row["output"], "label": _thumb(row)}
    return [{**rest, "prompt": alpaca_prompt(row), **answer}]


def _thumb(row: dict) -> bool:
    column = thumb_column(row)
    if column is None:
        raise UserError("label: true or false is expected")
    return thumb(row[column])


# ---- rankings --------------------------------------------------------------------------------------------------------

COMPLETION = re.compile(r"completion_(\d+)")


def from_kochatgpt(row: dict) -> list[dict]:
    """{prompt, completion_0 .. completion_K-1, ranking}: ranking[i] is the rank of completion_i, 0 = best.

    That reading is the one of the project's own training code, which takes completion_i over completion_j as chosen
    where ranking[i] < ranking[j]. `ranking` is not a list of answers in order of merit.
    """
    columns = [column for column in row if COMPLETION.fullmatch(column)]
    columns.sort(key=lambda column: int(COMPLETION.fullmatch(column)[1]))  # 10 comes after 9
    completions = [row[column] for column in columns]
    rest = without(row, "prompt", "ranking", *columns)
    return [{**rest, "prompt": row["prompt"], "completions": completions, "ranks": row["ranking"]}]


# ---- rankings of answers that are rows of their own -------------------------------------------------------------------


def answer_column(row: dict) -> str:
    if "response" in row:
        return "response"
    return "completion"


def score_columns(row: dict) -> list[str]:
    """The columns with a number, by which answers can be ranked."""
    rest = without(row, "prompt", answer_column(row))
    return [name for name, value in rest.items() if number(value) is not None]


def rank_scored(rows: Iterable[Located], score: str) -> Iterator[tuple[str, dict | UserError]]:
    """Rankings of {prompt, response or completion, <score>} rows, in the order in which the prompts are met first.

    score: the column with a number; a higher one is better. A row without a number is yielded as an error.
    """
    groups: dict[str, list[Located]] = {}
    for location, row in rows:
        value, answer = row.get(score), answer_column(row)
        if number(value) is None:
            yield location, UserError(f"{score}: a number is expected, {value!r:.60} given")
        elif row.get(answer) is None:
            yield location, UserError(f"{answer}: missing")
        else:
            key = [prompt_text(row), *map(row.get, SYSTEM)]
            groups.setdefault(str(key), []).append((location, row))
    for group in groups.values():
        location, first = group[0]
        if len(group) < 2:
            yield location, Dropped("prompts with one answer, which cannot be ranked")
            continue
        answers = [row[answer_column(row)] for _, row in group]
        scores = [number(row[score]) for _, row in group]
        system = {column: first[column] for column in SYSTEM if column in first}
        ranking = {"prompt": first["prompt"], "completions": answers, "ranks": ranks(scores)}
        yield location, {**system, **ranking}


def prompt_text(row: dict) -> str:
    """The prompt of a row as a string that is equal for equal prompts."""
    return json.dumps(row["prompt"], default=str)


def rank_thumbs(rows: Iterable[dict]) -> Iterator[dict | Dropped]:
    """Rankings of unpaired preferences: of a prompt with good and bad answers, the good ones have rank 0."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(prompt_text(row), []).append(row)
    for group in groups.values():
        scores = [thumb(row["label"]) for row in group]
        if len(set(scores)) == 1:
            yield Dropped("prompts whose answers all have the same label")
            continue
        answers = [row["completion"] for row in group]
        yield {"prompt": group[0]["prompt"], "completions": answers, "ranks": ranks(scores)}


def ranks(scores: list[float]) -> list[int]:
    """Rank 0 for the highest score. Equal scores share a rank."""
    ordered = sorted(set(scores), reverse=True)
    return [ordered.index(score) for score in scores]


# ---- OpenAssistant ---------------------------------------------------------------------------------------------------

TREE_ROLES = {"prompter": "user", "assistant": "assistant"}
DELETED = Dropped("messages that were deleted or that reviewers rejected, with all below them")
ONE_ANSWER = Dropped("questions with fewer than two ranked answers")


def from_tree(row: dict) -> list[dict]:
    """OpenAssistant's tree {prompt: {text, role, replies: [...]}}: a ranking for each question with ranked answers."""
    if not isinstance(row["prompt"], dict):
        raise UserError(f"prompt: a message with replies is expected, {row['prompt']!r:.60} given")
    return list(_rankings(row["prompt"], []))


def _rankings(question: dict, history: list[dict]) -> Iterator[dict | Dropped]:
    """Rankings of the answers to a question and, below them, to the next questions."""
    # A stack, because a tree may be deeper than Python's recursion.
    stack = [(question, history)]
    while stack:
        message, before = stack.pop()
        if not isinstance(message, dict):
            raise UserError(f"replies: a message is expected, {message!r:.60} given")
        if _is_deleted(message):
            yield DELETED
            continue
        turns = [*before, _tree_message(message)]
        replies = message.get("replies") or []
        if not isinstance(replies, list):
            raise UserError(f"replies: a list is expected, {replies!r:.60} given")
        if turns[-1]["role"] == "user":
            yield _ranking(turns, replies)
        for reply in reversed(replies):
            stack.append((reply, turns))


def _is_deleted(message: dict) -> bool:
    deleted = message.get("deleted")
    # A table writes False as a string, which is not empty.
    if thumb(deleted) is not None:
        deleted = thumb(deleted)
    return bool(deleted) or thumb(message.get("review_result")) is False


def _is_ranked(reply) -> bool:
    if not isinstance(reply, dict) or _is_deleted(reply):
        return False
    return number(reply.get("rank")) is not None


def _tree_message(message: dict) -> dict:
    role = message.get("role")
    if role not in tuple(TREE_ROLES):  # a role may be a list, which has no hash
        raise UserError(f"role: {role!r} is unknown, allowed: {', '.join(TREE_ROLES)}")
    return {"role": TREE_ROLES[role], "content": message.get("text")}


def _ranking(prompt: list[dict], replies: list[dict]) -> dict | Dropped:
    ranked = [reply for reply in replies if _is_ranked(reply)]
    if len(ranked) < 2:
        return ONE_ANSWER
    texts = [reply.get("text") for reply in ranked]
    # Other answers of the question may have been deleted, which leaves gaps.
    return {
        "prompt": prompt,
        "completions": texts,
        "ranks": [int(number(reply["rank"])) for reply in ranked],
    }


def rank_trees(rows: Iterable[Located], _: str) -> Iterator[tuple[str, dict | UserError]]:
    """Rankings of OpenAssistant's flat rows {message_id, parent_id, text, role, rank}, as in its trees."""
    messages: dict[str, dict] = {}
    locations = {}
    for location, row in rows:
        name = row["message_id"]
        if not isinstance(name, str | int):
            yield location, UserError(f"message_id: a string is expected, {name!r:.60} given")
        elif name in messages:
            yield location, Dropped("messages whose message_id repeats an earlier one")
        else:
            messages[name] = {**row, "replies": []}
            locations[name] = location
    roots = []
    for name, message in messages.items():
        location, parent = locations[name], message["parent_id"]
        if parent in (None, ""):
            roots.append((location, message))
        elif isinstance(parent, str | int) and parent in messages:
            messages[parent]["replies"].append(message)
        else:
            yield location, Dropped("messages whose parent_id is not in the file")
    for location, root in roots:
        try:
            for item in _rankings(root, []):
                yield location, item
        except UserError as error:
            yield location, error
