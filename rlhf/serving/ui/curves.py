"""Curves as inline SVG, which needs no script and no other host, and follows the theme's colours."""

import html

MOST_POINTS = 240  # of a line that is drawn; a plot is about as many pixels wide
SHOWN = 8  # plots before the fold
WIDTH, HEIGHT = 300, 110

CSS = """
.curves {display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 14px;}
.curves figure {margin: 0; min-width: 0;}
.curves figcaption {display: flex; justify-content: space-between; gap: 8px; font-size: 0.85rem; margin-bottom: 2px;}
.curves figcaption b {font-weight: 600; overflow-wrap: anywhere;}
.curves .last {color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums;}
.curves .area {position: relative; border-left: 1px solid var(--border-color-primary);
  border-bottom: 1px solid var(--border-color-primary);}
.curves svg {display: block; width: 100%; height: 110px;}
.curves polyline {fill: none; stroke-width: 1.6; vector-effect: non-scaling-stroke; stroke-linejoin: round;}
.curves .training {stroke: var(--primary-500);}
.curves .evaluation {stroke: #f59e0b; stroke-dasharray: 5 3;}
.curves .other {stroke: #8b5cf6;}
.curves .other.evaluation {stroke: #ec4899;}
.curves .high, .curves .low {position: absolute; left: 4px; font-size: 0.7rem; color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums; pointer-events: none;}
.curves .high {top: 0;} .curves .low {bottom: 0;}
.curves .steps {display: flex; justify-content: space-between; font-size: 0.7rem;
  color: var(--body-text-color-subdued);}
.curve-key {display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 10px; font-size: 0.85rem;}
.curve-key span::before {content: ""; display: inline-block; width: 18px; height: 0; margin-right: 6px;
  border-top: 2px solid var(--primary-500); vertical-align: middle;}
.curve-key .evaluation::before {border-top: 2px dashed #f59e0b;}
.curve-key .other::before {border-top-color: #8b5cf6;}
.curve-key .other.evaluation::before {border-top: 2px dashed #ec4899;}
.more-curves summary {cursor: pointer; padding: 12px 0; color: var(--body-text-color-subdued);}
"""

Curves = dict[str, dict[str, list[tuple]]]


def short(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}"


def curves_html(curves: Curves, other: Curves, names: dict[str, str]) -> str:
    """Small plots, one per metric, of a run and of another one if there is one.

    names: the texts of "training", "evaluation", "other", "step" and "more" in the reader's language.
    """
    # A metric that only one of them has is drawn too.
    metrics = ordered({**other, **curves})
    plots = []
    for metric in metrics:
        lines = []
        for label, points in curves.get(metric, {}).items():
            lines.append((label, points))
        for label, points in other.get(metric, {}).items():
            lines.append((f"other {label}", points))
        plots.append(plot(metric, lines, names["step"]))
    body = f"<div class='curves'>{''.join(plots[:SHOWN])}</div>"
    if len(plots) > SHOWN:
        more = html.escape(names["more"].format(n=len(plots) - SHOWN))
        rest = f"<div class='curves'>{''.join(plots[SHOWN:])}</div>"
        body += f"<details class='more-curves'><summary>{more}</summary>{rest}</details>"
    return key(curves, other, names) + body


def key(curves: Curves, other: Curves, names: dict[str, str]) -> str:
    """The names of the lines, if there is more than one kind."""
    kinds = []
    for prefix, runs in (("", curves), ("other ", other)):
        for label in ("training", "evaluation"):
            if any(label in lines for lines in runs.values()):
                title = names[label]
                if prefix:
                    title = f"{names['other']}, {title}"
                kinds.append(f"<span class='{prefix}{label}'>{html.escape(title)}</span>")
    if len(kinds) < 2:
        return ""
    return f"<p class='curve-key'>{''.join(kinds)}</p>"


def ordered(metrics) -> list[str]:
    """The metrics of the progress bar first, in its order, then the others by name."""
    from rlhf.runs.progress import HEADLINES  # transformers takes seconds to import

    first = [name for name in HEADLINES if name in metrics]
    return first + sorted(name for name in metrics if name not in first)


def plot(metric: str, lines: list[tuple[str, list[tuple]]], step: str) -> str:
    """One metric: its lines, its range and the steps."""
    xs, ys = [], []
    for _, points in lines:
        for x, y in points:
            xs.append(x)
            ys.append(y)
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    drawn = [polyline(kind, points, (left, right, low, high)) for kind, points in lines]
    # The numbers in the heading are those of the first line, which is the run itself.
    last = lines[0][1][-1][1]
    first = lines[0][1][0][1]
    title = html.escape(metric)
    says = html.escape(
        f"{metric}: {short(first)} to {short(last)}, {step} {short(left)} to {short(right)}"
    )
    return (
        f"<figure><figcaption><b>{title}</b><span class='last'>{short(last)}</span></figcaption>"
        f"<div class='area' role='img' aria-label=\"{says}\">"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' preserveAspectRatio='none' aria-hidden='true'>{''.join(drawn)}</svg>"
        f"<span class='high'>{short(high)}</span><span class='low'>{short(low)}</span></div>"
        f"<div class='steps'><span>{left:g}</span><span>{right:g}</span></div></figure>"
    )


def polyline(kind: str, points: list[tuple], bounds: tuple[float, float, float, float]) -> str:
    """A line in the plot's coordinates; kind: its class."""
    left, right, low, high = bounds
    # A flat line is drawn in the middle.
    width, height = right - left or 1, high - low
    corners = []
    for x, y in thinned(points):
        share = (y - low) / height if height else 0.5
        across = (x - left) / width * WIDTH
        # The y axis of SVG points down; 4 pixels keep the line from being cut at its ends.
        down = 4 + (1 - share) * (HEIGHT - 8)
        corners.append(f"{across:.1f},{down:.1f}")
    return f"<polyline class='{kind}' points='{' '.join(corners)}'/>"


def thinned(points: list[tuple]) -> list[tuple]:
    """At most MOST_POINTS of the points, evenly, the last one among them."""
    if len(points) <= MOST_POINTS:
        return points
    stride = -(-len(points) // MOST_POINTS)  # rounded up
    return points[:-1:stride] + points[-1:]
