"""A trained question answering model: questions and contexts -> answers, which are parts of the contexts."""

import os
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rlhf.models.parts import context_length, fit_tokenizer
from rlhf.tasks.answers import Answers, Table
from rlhf.tasks.forward import check_texts, load_trained, run_batches
from rlhf.tasks.question_answering.encode import best_answers, decide, question_windows
from rlhf.tasks.question_answering.metrics import answer_scores

# BERT's own, for models that were not trained here.
MAX_LENGTH = 384
MAX_ANSWER_LENGTH = 30


class QuestionAnsweringPredictor:
    """The run folder of recipes/question_answering.py, or any extractive model of the Hub, ready to answer."""

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.model, self.tokenizer = load_trained(folder, "question_answering", device)
        # A model of the Hub may come with a tokenizer without token types.
        fit_tokenizer(self.tokenizer, self.model, pairs=True)
        config = self.model.config
        self.windows: dict = getattr(config, "reader_windows", None) or self._default_windows()
        self.no_answer_threshold: float | None = getattr(config, "no_answer_threshold", None)

    def _default_windows(self) -> dict:
        longest = min(context_length(self.model), self.tokenizer.model_max_length)
        length = min(MAX_LENGTH, longest)
        return {
            "max_length": length,
            "stride": length // 3,
            "max_answer_length": MAX_ANSWER_LENGTH,
        }

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """Rows with question and context -> {answer, start, end, score, no_answer, n_best}, in their order.

        answer: context[start:end]. score: 0 to 1, among the best spans.
        no_answer: the probability that the context holds no answer; None where the model was trained without such
        questions. Above the model's threshold the answer is "", start and end are None, and score is that probability.
        n_best: the best spans {answer, start, end, score}.
        """
        questions = []
        for i, row in enumerate(rows):
            check_texts(row, ("question", "context"), i)
            # Without the answers, which would be encoded as labels.
            questions.append({"question": row["question"], "context": row["context"]})
        windows = list(question_windows(self.tokenizer, questions, Counter(), **self.windows))
        features = [window.feature for window in windows]
        # (start, end) logits of each window, (L,) each; they come in the order of the lengths
        logits: list = [None] * len(windows)
        for i, outputs in run_batches(self.model, self.tokenizer, features, batch_size=batch_size):
            logits[i] = (outputs["start_logits"].numpy(), outputs["end_logits"].numpy())
        longest = self.windows["max_answer_length"]
        answers = best_answers(questions, windows, logits, max_answer_length=longest)
        return [decide(answer, self.no_answer_threshold) for answer in answers]


class QuestionAnsweringAnswers(Answers):
    """Exact match and F1 of predictions; of each row only the two scores are kept."""

    columns = ("questions", "rows", "exact", "f1")

    def __init__(self, predictor, run_config: dict):
        super().__init__(predictor, run_config)
        # The unit that the run was evaluated with: words (SQuAD) or characters (KorQuAD).
        self.unit = run_config.get("answer_unit", "word")
        self.answerable: list[tuple[float, float]] = []
        self.unanswerable: list[tuple[float, float]] = []

    def add(self, answer, prediction: dict) -> bool:
        scores = answer_scores(prediction["answer"], answer["text"], self.unit)
        if answer["text"]:
            self.answerable.append(scores)
        else:
            self.unanswerable.append(scores)
        return True

    def report(self) -> list[str | Table]:
        rows = [self._means("all", self.answerable + self.unanswerable)]
        # If all questions are of one sort, the line above is already that of the sort.
        if self.answerable and self.unanswerable:
            rows.append(self._means("answerable", self.answerable))
            rows.append(self._means("unanswerable", self.unanswerable))
        return [Table(self.columns, rows)]

    @staticmethod
    def _means(name: str, scores: list[tuple[float, float]]) -> dict:
        exact, f1 = zip(*scores)
        return {"questions": name, "rows": len(scores), "exact": fmean(exact), "f1": fmean(f1)}
