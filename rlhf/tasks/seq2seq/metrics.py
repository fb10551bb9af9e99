"""chrF and BLEU of written texts against their references, by sacrebleu, also by length of the source; plots."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rlhf.errors import UserError
from rlhf.runs.plots import saved_figure

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
    # Both see the same resamples of rows, by sacrebleu's fixed seed.
    for name, metric in {"chrf": CHRF(), "bleu": BLEU(tokenize=bleu_tokenize)}.items():
        score = metric.corpus_score(list(written), [list(references)], n_bootstrap=resamples)
        results[name] = float(score.score)
        if resamples > 1:
            # sacrebleu gives half of the interval's width, around the mean of the samples.
            results[f"{name}_low"] = max(0.0, float(score._mean - score._ci))
            results[f"{name}_high"] = min(100.0, float(score._mean + score._ci))
        results[f"{name}_signature"] = str(metric.get_signature())
    return results


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
        score = CHRF().corpus_score(
            [written[i] for i in inside],
            [[references[i] for i in inside]],
            n_bootstrap=RESAMPLES,
        )
        rows.append(
            {
                "source_tokens": f"{lengths[inside].min()} to {lengths[inside].max()}",
                "rows": len(inside),
                "mean_tokens": float(lengths[inside].mean()),
                "chrf": float(score.score),
                "chrf_low": max(0.0, float(score._mean - score._ci)),
                "chrf_high": float(score._mean + score._ci),
            }
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
