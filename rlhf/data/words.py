"""Finds where the words of a text begin and end."""

import re
from collections.abc import Sequence

URL = r"https?://\S+"
NEVER = r"(?!)"  # a pattern that matches nothing

# Signs that join the parts of a word, and signs that open a word, as long as no training rows tell which do.
JOINTS = ("-", "@#")


def cut_words(text: str, joints: Sequence[str] = JOINTS) -> list[tuple[int, int]]:
    """(start, end) of each word of a text. A word is a run of letters and digits, and any other sign is its own word.

    joints: the signs inside and in front of words that do not cut them, as `find_joints` finds them.
    """
    inside, in_front = map(_any_of, joints)
    words = rf"{URL}|(?:{in_front})?\w+(?:{inside}\w+)*|[^\w\s]"
    return [match.span() for match in re.finditer(words, text)]


def _any_of(signs: str) -> str:
    if not signs:
        return NEVER
    return f"[{re.escape(signs)}]"
