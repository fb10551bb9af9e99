"""chrF and BLEU of written texts against their references, by sacrebleu, also by length of the source; plots."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from rlhf.errors import UserError
from rlhf.runs.plots import saved_figure
from rlhf.statistics import middle_95

RESAMPLES = 1000  # of the bootstrap
GROUPS = 4  # of sources by length, with about as many rows each
# How sacrebleu cuts words, of the ways that need no other package.
BLEU_TOKENS = ("13a", "char", "intl", "zh")
MISSING = (
    'chrF and BLEU are computed by sacrebleu, which is not installed: pip install "rlhf[ladder]"'
)
# Fonts with more scripts than matplotlib's own; those that are installed are used.
FONTS = ("DejaVu Sans", "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic")


def check_metrics(bleu_tokenize: str) -> None:
    """UserError where the evaluation could not be made."""
    if bleu_tokenize not in BLEU_TOKENS:
        raise UserError(f"bleu_tokenize={bleu_tokenize!r}: use one of {', '.join(BLEU_TOKENS)}")
    if not is_installed():
        raise UserError(MISSING)


def is_installed() -> bool:
    """True where sacrebleu is."""
    return find_spec("sacrebleu") is not None


def corpus_scores(
    written: Sequence[str], references: Sequence[str], bleu_tokenize: str, *, resamples=RESAMPLES
) -> dict:
    """chrF (Popovic 2015) and BLEU (Papineni et al. 2002) of a corpus, 0 to 100, with 95 % intervals over rows.

    chrF is the F2 score of character n-grams up to 6, BLEU the mean precision of word n-grams up to 4. The signatures name
    sacrebleu's version and settings. resamples: of the bootstrap; 1: no intervals.
    """
    from sacrebleu.metrics import BLEU, CHRF

    results = {}
    for name, metric in {"chrf": CHRF(), "bleu": BLEU(tokenize=bleu_tokenize)}.items():
        results |= _with_interval(name, metric, written, references, resamples)
        results[f"{name}_signature"] = str(metric.get_signature())
    return results


def _with_interval(name: str, metric, written, references, resamples: int) -> dict[str, float]:
    """The score of a corpus, and the middle 95 % of the scores of resampled rows.

    sacrebleu's own intervals end with a TypeError where some resamples have a score of 0 and others have not.
    """
    score = metric.corpus_score(list(written), [list(references)])
    results = {name: float(score.score)}
    if resamples > 1:
        counts = np.array(metric._extract_corpus_statistics(list(written), [list(references)]))
        draw = np.random.default_rng(0)
        scores = []
        for _ in range(resamples):
            rows = draw.integers(len(counts), size=len(counts))
            total = counts[rows].sum(axis=0).tolist()
            scores.append(float(metric._compute_score_from_stats(total).score))
        low, high = middle_95(torch.tensor(scores))
        results |= {f"{name}_low": low, f"{name}_high": high}
    return results


def chrf_of_each(written: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF (Popovic 2015) of each text with its reference, 0 to 100. UserError where sacrebleu is not installed."""
    if not is_installed():
        raise UserError(MISSING)
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    pairs = zip(written, references, strict=True)
    return [float(metric.sentence_score(text, [reference]).score) for text, reference in pairs]


def scores_by_length(
    written: Sequence[str], references: Sequence[str], lengths: Sequence[int]
) -> list[dict]:
    """chrF with its interval for sources of about one length, the shortest first.

    lengths: tokens of the sources. Equal lengths are in one group, so that groups may differ in their rows.
    """
    from sacrebleu.metrics import CHRF

    lengths = np.asarray(lengths)
    # Quartiles that are lengths of rows, so that each group has some.
    edges = np.quantile(lengths, np.linspace(0, 1, GROUPS + 1)[1:-1], method="higher")
    groups = np.searchsorted(np.unique(edges), lengths, side="left")
    rows = []
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)  # indices of the rows
        score = _with_interval(
            "chrf",
            CHRF(),
            [written[i] for i in inside],
            [references[i] for i in inside],
            RESAMPLES,
        )
        rows.append(
            {
                "source_tokens": f"{lengths[inside].min()} to {lengths[inside].max()}",
                "rows": len(inside),
                "mean_tokens": float(lengths[inside].mean()),
            }
            | score
        )
    return rows


# ---- plots -------------------------------------------------------------------------------------------------------


def plot_lengths(groups: Sequence[dict], path: Path) -> None:
    """chrF against the length of the source, with its intervals."""
    tokens = [group["mean_tokens"] for group in groups]
    scores = np.array([group["chrf"] for group in groups])
    low = np.array([group["chrf_low"] for group in groups])
    high = np.array([group["chrf_high"] for group in groups])
    # The score may be outside of the interval by rounding.
    errors = np.clip([scores - low, high - scores], 0, None)
    with saved_figure(path, figsize=(5, 3.2)) as (_, axis):
        axis.errorbar(tokens, scores, yerr=errors, marker="o", capsize=3)
        axis.set_xlabel("tokens of the source (mean of each group)")
        axis.set_ylabel("chrF, 95 % interval")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)


def plot_alignment(item: dict, path: Path) -> None:
    """The alignment of one pair: a row for each token that was written, a column for each token that was read.

    item: source (S tokens), target (T tokens), weights (T lists of S numbers; each list sums to 1).
    """
    import matplotlib

    source, target = item["source"], item["target"]
    size = (1.5 + 0.35 * len(source), 1.2 + 0.3 * len(target))
    with warnings.catch_warnings(), matplotlib.rc_context({"font.family": _installed_fonts()}):
        # One warning for each character that no font has; seq2seq.json holds the tokens as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with saved_figure(path, figsize=size) as (_, axis):
            axis.imshow(item["weights"], cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(source)), source, rotation=90)
            axis.set_yticks(range(len(target)), target)


def _installed_fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed] or ["sans-serif"]
