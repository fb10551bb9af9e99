"""Events with short texts, and a store to write them into."""

from types import SimpleNamespace

import pytest

from rlhf.feedback.events import Answer, Comparison, ModelUsed, Ranking, Rating
from rlhf.feedback.store import Store

OLD, NEW = ModelUsed("old", "runs/sft", "0" * 64), ModelUsed("new", "runs/ppo", "1" * 64)


def prompt(text: str = "Hi!") -> list[dict]:
    return [{"role": "user", "content": text}]


def rating(text: str = "Hi!", value: str = "up", **more) -> Rating:
    return Rating(prompt(text), "Hello!", NEW, {"temperature": 0.7}, 3, value, **more)


def comparison(verdict, text: str = "Hi!", models=(OLD, NEW), shown=None, **more) -> Comparison:
    answers = [Answer(f"answer {i}", model, 5) for i, model in enumerate(models)]
    shown = shown or list(range(len(models)))
    return Comparison(prompt(text), answers, shown, {}, verdict, **more)


def ranking(ranks, text: str = "Hi!", texts=None, **more) -> Ranking:
    texts = texts or [f"answer {i}" for i in range(len(ranks))]
    answers = [Answer(words, NEW, i) for i, words in enumerate(texts)]
    return Ranking(prompt(text), answers, list(range(len(ranks))), {}, list(ranks), **more)


@pytest.fixture(scope="session")
def make():
    return SimpleNamespace(
        prompt=prompt, rating=rating, comparison=comparison, ranking=ranking, old=OLD, new=NEW
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "feedback")
