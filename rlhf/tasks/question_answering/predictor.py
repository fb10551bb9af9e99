"""A trained reader answers questions about texts: the answer is a part of the text, with its place."""

import os
from collections.abc import Sequence

from rlhf.models.parts import context_length, fit_tokenizer
from rlhf.tasks.forward import check_texts, load_finished, run_batches
from rlhf.tasks.question_answering.encode import best_answers, decide, encode_windows


class Reader:
    """The run folder of recipes/question_answering.py, or any extractive reader on the Hub, ready to answer."""

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.model, self.tokenizer = load_finished(folder, "reader", device)
        fit_tokenizer(self.tokenizer, self.model, pairs=True)
        config = self.model.config
        length = min(384, context_length(self.model), self.tokenizer.model_max_length)
        elsewhere = {
            "max_length": length,
            "stride": length // 3,
            "max_answer_length": 30,
        }  # BERT's own
        self.windows: dict = getattr(config, "reader_windows", None) or elsewhere
        self.no_answer_threshold: float | None = getattr(config, "no_answer_threshold", None)

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """Rows with question and context -> {answer, start, end, score, no_answer, n_best}, in their order.

        answer: context[start:end]; score: 0 to 1, among the best spans. no_answer: the probability that the context
        does not say it, None of a model that was trained without such questions; above the model's threshold the answer
        is "", start and end are None, and score is that probability. n_best: the best spans {answer, start, end, score}.
        """
        for place, row in enumerate(rows):
            check_texts(row, ("question", "context"), place)
        asked = [{name: row[name] for name in ("question", "context")} for row in rows]
        windows = encode_windows(self.tokenizer, asked, **self.windows).windows
        logits: list = [None] * len(windows)
        features = [window.feature for window in windows]
        for place, outputs in run_batches(
            self.model, self.tokenizer, features, batch_size=batch_size
        ):
            logits[place] = (outputs["start_logits"].numpy(), outputs["end_logits"].numpy())
        found = best_answers(
            asked, windows, logits, max_answer_length=self.windows["max_answer_length"]
        )
        return [decide(answer, self.no_answer_threshold) for answer in found]
