"""Checks that the labels of a source have one type. 'pos', 'neg' and 3 are a mistake more often than three classes."""

# Types that no source may have together: type -> those that it cannot be mixed with.
CONFLICTS = {
    "true or false": ("an integer", "a string"),
    "an integer": ("true or false", "a string"),
    "a string": ("true or false", "an integer"),
}


def type_of(label) -> str | None:
    """The type of a label, as a message names it. None for what fits the others: fractions, and "3", which is 3."""
    if isinstance(label, bool):
        return "true or false"
    if isinstance(label, int):
        return "an integer"
    if isinstance(label, str) and not label.strip().removeprefix("-").isdecimal():
        return "a string"
    return None


class LabelTypes:
    """The types of the labels that were met so far, each with the first label of it."""

    def __init__(self):
        self.first: dict[str, tuple[object, str]] = {}  # type -> label, where it is
        self.spellings: dict[
            str, tuple[str, str]
        ] = {}  # label without its spelling -> label, where it is

    def problem(self, value, location: str) -> str | None:
        """The reason why a label, or a list of labels, does not fit those before it; None if it does."""
        labels = value
        if not isinstance(value, list):
            labels = [value]
        for label in labels:
            reason = self._other_spelling(label, location)
            if reason:
                return reason
            own = type_of(label)
            if own is None:
                continue
            for other in CONFLICTS[own]:
                if other in self.first:
                    earlier, earlier_location = self.first[other]
                    return (
                        f"{label!r:.60} is {own}, but {earlier!r:.60} is {other} ({earlier_location}): give all labels "
                        "one type"
                    )
            self.first.setdefault(own, (label, location))
        return None

    def _other_spelling(self, label, location: str) -> str | None:
        """The reason why a label is one that was met before, spelled in another way, or None."""
        if not isinstance(label, str):
            return None
        plain = label.strip()
        if plain.lower() in ("true", "false"):
            plain = plain.lower()  # tools write TRUE, True and true
        first, first_location = self.spellings.setdefault(plain, (label, location))
        if label == first:
            return None
        return f"{label!r:.60} is {first!r:.60} ({first_location}) in another spelling: give each label one spelling"
