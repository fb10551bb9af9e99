"""Figures that are drawn into a file, without a screen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

DPI = 110
LAYOUT = "constrained"


@contextmanager
def saved_figure(
    path: str | os.PathLike,
    rows: int = 1,
    columns: int = 1,
    **options,
) -> Iterator[tuple]:
    """A new figure and its axes, as plt.subplots returns them. The end of the `with` block saves and closes it.

    options: of plt.subplots, as figsize. A block that raises an error leaves no file.
    """
    # matplotlib takes a second to import, and only what draws needs it.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, layout=LAYOUT, **options)
    try:
        yield figure, axes
        figure.savefig(path, dpi=DPI)
    finally:
        plt.close(figure)
