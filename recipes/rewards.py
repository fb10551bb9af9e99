"""Reward functions in Python: f(prompts, completions, **columns) -> one number per completion.

Named in a YAML as `reward_functions: [recipes.rewards:slot_coverage]`; columns are the other columns of the rows.
"""

import re


def slot_coverage(prompts, completions, **columns) -> list[float]:
    """Share of the given facts whose value stands in the text, ignoring case; `familyFriendly` is a yes or no, left out.

    Prompts are meaning representations of the E2E NLG challenge: "name[Alimentum], area[city centre]".
    """
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        facts = [
            value for slot, value in re.findall(r"(\w+)\[(.*?)\]", text) if slot != "familyFriendly"
        ]
        found = sum(value.lower() in completion.lower() for value in facts)
        scores.append(found / len(facts) if facts else 1.0)
    return scores


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def on_topic(prompts, completions, *, answers, **columns) -> list[float]:
    """1 when the completion is one of the right answers of its row, in whichever voice."""
    right = [{plain(text) for text in row.values()} for row in answers]
    return [float(plain(c) in allowed) for c, allowed in zip(completions, right, strict=True)]


def preferred_voice(prompts, completions, *, answers, voice, **columns) -> list[float]:
    """1 when the completion is an answer in the preferred voice, to whichever prompt of these rows."""
    spoken = {plain(row[name]) for row, name in zip(answers, voice, strict=True)}
    return [float(plain(completion) in spoken) for completion in completions]
