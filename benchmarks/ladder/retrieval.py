"""chrF of answers that no model wrote: what a ladder on questions with answers is compared with. `run.py` calls it."""

import random
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

from rlhf.data.load import load_rows
from rlhf.tasks.seq2seq.metrics import chrf_of_each

LONGEST = 4  # characters of an n-gram


def chrf_without_model(folder: Path) -> dict[str, float]:
    """Mean chrF with the held-out answers of two ways to answer by the answers of the training rows.

    folder: what ladder_data wrote. "random": any of them. "nearest": that of the most similar question, by the cosine of
    their character n-grams up to LONGEST within words, weighted by tf-idf.
    """
    known = load_rows(str(folder / "sft.jsonl"), kinds=("prompt_completion",)).rows
    asked = load_rows(str(folder / "heldout.jsonl"), kinds=("prompt",)).rows
    answers = [row["completion"] for row in known]
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, LONGEST))
    vectors = vectorizer.fit_transform([row["prompt"] for row in known])  # (K, F)
    similar = vectorizer.transform([row["prompt"] for row in asked]) @ vectors.T  # (A, K)
    nearest = similar.toarray().argmax(axis=1).tolist()
    drawn = random.Random(0).choices(range(len(known)), k=len(asked))
    references = [row["reference"] for row in asked]
    means = {}
    for name, indices in {"random": drawn, "nearest": nearest}.items():
        scores = chrf_of_each([answers[i] for i in indices], references)
        means[name] = sum(scores) / len(scores)
    return means
