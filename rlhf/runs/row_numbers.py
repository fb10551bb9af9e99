"""The numbers of the rows of a batch: carried from the data set through the collator, for messages."""

from collections.abc import Callable, MutableMapping, Sequence

ROW_NUMBERS = "row_numbers"  # of a batch: the numbers of its rows in the data set
SHOWN = 64  # numbers in a message


class NumberedRows:
    """A data set whose items are (number, row)."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple:
        return number, self.rows[number]

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple]:
        """All rows of a batch, which datasets.Dataset reads at once."""
        if hasattr(self.rows, "__getitems__"):
            rows = self.rows.__getitems__(numbers)
        else:
            rows = [self.rows[number] for number in numbers]
        return list(zip(numbers, rows, strict=True))

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


class NumberedCollator:
    """Collates the rows of `NumberedRows` as another collator does, and adds their numbers to the batch."""

    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, items: list[tuple]):
        numbers = [int(number) for number, _ in items]
        batch = self.collator([row for _, row in items])
        if isinstance(batch, MutableMapping):
            # At its end: accelerate reads the batch size off the first value.
            batch[ROW_NUMBERS] = numbers
        return batch


def numbers_text(numbers) -> str:
    """Row numbers for a message, in order."""
    ordered = sorted({int(number) for number in numbers})
    text = ", ".join(map(str, ordered[:SHOWN]))
    if len(ordered) > SHOWN:
        text += f" and {len(ordered) - SHOWN} more"
    return text
