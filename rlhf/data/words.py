"""Where the words of a text begin and end."""

import re
from collections.abc import Sequence

URL = r"https?://\S+"

JOINTS = ("-", "@#")  # signs inside and in front of words, where no training rows tell


def cut_words(text: str, joints: Sequence[str] = JOINTS) -> list[tuple[int, int]]:
    """(start, end) of the words of a text: letters and digits, with the signs of `find_joints`, all other signs apart."""
    inner, leading = (f"[{re.escape(signs)}]" if signs else r"(?!)" for signs in joints)
    words = rf"{URL}|(?:{leading})?\w+(?:{inner}\w+)*|[^\w\s]"
    return [match.span() for match in re.finditer(words, text)]
