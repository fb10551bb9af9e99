"""Reward functions in Python: f(prompts, completions, **columns) -> one number per completion.

Named in a YAML as `reward_functions: [rlhf.recipes.rewards:slot_coverage]`; columns are the other columns of the rows.
"""

import re

from rlhf.tasks.seq2seq.metrics import chrf_of_each


def slot_coverage(prompts, completions, **columns) -> list[float]:
    """Share of the given facts whose value occurs in the text, ignoring case.

    Prompts are meaning representations of the E2E NLG challenge: "name[Alimentum], area[city centre]". The value of
    `familyFriendly` is a yes or no, which no text repeats, so it does not count.
    """
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(prompt, str):
            text = prompt
        else:
            text = prompt[-1]["content"]  # the last message
        slots = re.findall(r"(\w+)\[(.*?)\]", text)  # pairs (name, value)
        values = [value.lower() for slot, value in slots if slot != "familyFriendly"]
        if not values:  # nothing to miss
            scores.append(1.0)
            continue
        count = sum(value in completion.lower() for value in values)
        scores.append(count / len(values))
    return scores


def on_topic(prompts, completions, *, answers, **columns) -> list[float]:
    """1 when the completion is one of the right answers of its row, in any voice."""
    scores = []
    for completion, by_voice in zip(completions, answers, strict=True):
        right = [plain(answer) for answer in by_voice.values()]
        scores.append(float(plain(completion) in right))
    return scores


def preferred_voice(prompts, completions, *, answers, voice, **columns) -> list[float]:
    """1 when the completion is an answer in the preferred voice, to any prompt of these rows."""
    # A set of all rows' answers: a right voice counts even where the topic is wrong.
    spoken = set()
    for by_voice, name in zip(answers, voice, strict=True):
        spoken.add(plain(by_voice[name]))
    return [float(plain(completion) in spoken) for completion in completions]


def chrf(prompts, completions, *, reference, **columns) -> list[float]:
    """chrF with the row's own answer, 0 to 100: how many of its character n-grams are there, up to 6 characters."""
    return chrf_of_each(completions, reference)


def honest(prompts, completions, *, refusals, **columns) -> list[float]:
    """1 when the completion says that the question is beyond the model, in any voice.

    refusals: per row the answers by voice that say so.
    """
    return on_topic(prompts, completions, answers=refusals)


def plain(text: str) -> str:
    """Lower case, single spaces."""
    return " ".join(text.lower().split())
