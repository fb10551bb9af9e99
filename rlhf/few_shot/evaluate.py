"""Accuracy of language models against the number of shots (GPT-3, Brown et al. 2020, arXiv 2005.14165).

For each run, number of shots and draw of shots: prompts, log-probabilities of the answers, and the answer that each
method ranks first. Questions to be answered in free text are generated greedily and compared as in SQuAD.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.comparison.compare import ChatRun
from rlhf.completions.sample import decode
from rlhf.data.chat import completion_text
from rlhf.data.padding import left_pad
from rlhf.errors import UserError
from rlhf.few_shot.prompts import Candidates, PromptWriter
from rlhf.few_shot.questions import Question, Questions, draw_shots
from rlhf.few_shot.scores import (
    CONTENT_FREE,
    METHODS,
    answer_log_probs,
    best,
    content_free_bias,
    method_scores,
)
from rlhf.models.parts import context_length, stop_token_ids
from rlhf.statistics import two_way_bootstrap, wilson_interval
from rlhf.tasks.question_answering.metrics import answer_scores

QUESTIONS_AT_ONCE = 16  # whose answers are scored together, so that sequences of like length meet
FREE_METHODS = ("exact", "f1")
RESAMPLES = 2000


@dataclass(frozen=True)
class FewShotSettings:
    """shots: numbers of shots. draws: of the shots, for each number. max_answer_length: of generated answers, in tokens."""

    shots: tuple[int, ...]
    draws: int
    seed: int
    batch_size: int
    max_answer_length: int
    answer_unit: str


@dataclass
class Cell:
    """One run with one number of shots.

    correct: method -> (draws, questions), 1.0 where the answer is right; F1 has values between.
    log_probs: for each draw and question, the sums of the answers; [] for generated answers.
    answers: for each draw, the generated texts; [] for ranked answers.
    dropped_shots: shots that did not fit into the context, over all questions and draws. ties: by method.
    """

    run: str
    shots: int
    correct: dict[str, list[list[float]]]
    log_probs: list[list[list[float]]] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    dropped_shots: int = 0
    ties: dict[str, int] = field(default_factory=dict)

    def add(self, correct: dict[str, list[float]]) -> None:
        """Add the results of a draw."""
        for method, values in correct.items():
            self.correct.setdefault(method, []).append(values)


@dataclass(frozen=True)
class Accuracy:
    """The mean of a method over questions and draws, with its 95 % interval and the mean of each draw."""

    method: str
    mean: float
    low: float
    high: float
    by_draw: list[float]


def accuracies(cell: Cell, seed: int) -> list[Accuracy]:
    """The methods of a cell. One draw of zeros and ones has Wilson's interval, all else a bootstrap over both.

    The bootstrap draws questions and draws of shots again. With few draws, it is too narrow.
    """
    results = []
    for method, values in cell.correct.items():
        matrix = torch.tensor(values, dtype=torch.float64)  # (draws, questions)
        mean = matrix.mean().item()
        is_share = bool(((matrix == 0) | (matrix == 1)).all())
        if len(values) == 1 and is_share:
            low, high = wilson_interval(mean, matrix.shape[1])
        else:
            low, high = two_way_bootstrap(matrix, resamples=RESAMPLES, seed=seed)
        results.append(Accuracy(method, mean, low, high, matrix.mean(1).tolist()))
    return results


def check_shots(questions: Questions, settings: FewShotSettings) -> None:
    """UserError where there are fewer rows than shots, before a model is loaded."""
    draw_shots(questions.pool, max(settings.shots), seed=settings.seed, draw=0)


def evaluate_run(
    run: ChatRun,
    writer: PromptWriter,
    questions: Questions,
    settings: FewShotSettings,
    advance: Callable[[], None],
) -> list[Cell]:
    """The results of a run for each number of shots. advance: called after each question."""
    evaluator = Evaluator(run, writer, settings)
    evaluator.advance = advance
    cells = []
    for count in settings.shots:
        cell = Cell(run.label, count, {})
        for draw in range(number_of_draws(count, settings)):
            shots = draw_shots(questions.pool, count, seed=settings.seed, draw=draw)
            if questions.is_ranked:
                evaluator.rank(questions.evaluated, shots, cell)
            else:
                evaluator.generate(questions.evaluated, shots, cell)
        cells.append(cell)
    return cells


def number_of_draws(shots: int, settings: FewShotSettings) -> int:
    """Without shots there is nothing to draw."""
    return settings.draws if shots else 1


def fitting_questions(
    runs: Sequence[tuple[ChatRun, PromptWriter]], questions: Questions, settings: FewShotSettings
) -> list[Question]:
    """The questions that fit into the context of every run without any shot, so that all runs answer the same ones."""
    kept = list(questions.evaluated)
    for run, writer in runs:
        evaluator = Evaluator(run, writer, settings)
        kept = [question for question in kept if evaluator.size(question, [])[1] <= evaluator.limit]
    if not kept:
        raise UserError(
            "no question fits into the context of every run: use shorter texts, a shorter --template, or a model with a "
            "longer context"
        )
    return kept


class Evaluator:
    """Answers questions with one run. limit: tokens that its context holds."""

    def __init__(self, run: ChatRun, writer: PromptWriter, settings: FewShotSettings):
        self.run, self.writer, self.settings = run, writer, settings
        self.advance: Callable[[], None] = lambda: None  # called after each question
        self.limit = context_length(run.model)

    def size(
        self, question: Question, shots: Sequence[Question]
    ) -> tuple[Candidates | list[int], int]:
        """(the prompt of a question with its answers, the tokens of context that it takes)."""
        if not question.answers:
            ids = self.writer.encode(shots, question.texts)
            return ids, len(ids) + self.settings.max_answer_length
        item = self.writer.candidates(shots, question.texts, question.answers)
        # The last token of an answer is predicted, but never read.
        return item, max(map(len, item.sequences)) - 1

    def fit(
        self, question: Question, shots: Sequence[Question]
    ) -> tuple[Candidates | list[int], list[Question]]:
        """The prompt with as many of the last shots as fit, and these shots."""
        kept = list(shots)
        while True:
            item, size = self.size(question, kept)
            if size <= self.limit:
                return item, kept
            if not kept:
                raise UserError(
                    f"a prompt without shots takes {size} tokens, and the context of {self.run.label} holds {self.limit}: "
                    "use a shorter --template"
                )
            kept = kept[1:]

    # ---- ranked answers ----

    def rank(self, questions: Sequence[Question], shots: Sequence[Question], cell: Cell) -> None:
        """Rank the answers of each question, and add the results of this draw to the cell."""
        correct = {method: [] for method in METHODS}
        all_log_probs = []
        biases: dict[tuple, Tensor] = {}
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            chunk = questions[start : start + QUESTIONS_AT_ONCE]
            fitted = [self.fit(question, shots) for question in chunk]
            items = [item for item, _ in fitted]
            sums = self.log_probs(items)
            for question, (item, kept), log_probs in zip(chunk, fitted, sums):
                cell.dropped_shots += len(shots) - len(kept)
                # Questions with the same answers and shots share the bias.
                key = (question.answers, len(kept))
                if key not in biases:
                    biases[key] = self.bias(question, kept)
                for method, scores in method_scores(log_probs, item, biases[key]).items():
                    answer, is_tie = best(scores)
                    correct[method].append(float(answer == question.gold))
                    cell.ties[method] = cell.ties.get(method, 0) + is_tie
                all_log_probs.append(log_probs.tolist())
                self.advance()
        cell.add(correct)
        cell.log_probs.append(all_log_probs)

    def bias(self, question: Question, shots: Sequence[Question]) -> Tensor:
        """log p_cf of the answers of a question, (answers,): all its texts are replaced by ones without content."""
        items = []
        for text in CONTENT_FREE:
            texts = dict.fromkeys(question.texts, text)
            # "" in the template {text} leaves nothing that a model could read before an answer.
            if not self.writer.encode(shots, texts):
                continue
            empty = Question(texts, question.answers, question.gold, question.references)
            items.append(self.fit(empty, shots)[0])
        return content_free_bias(self.log_probs(items))

    def log_probs(self, items: Sequence[Candidates]) -> list[Tensor]:
        return answer_log_probs(
            self.run.model,
            items,
            pad_token_id=self.run.pad_token_id,
            batch_size=self.settings.batch_size,
        )

    # ---- generated answers ----

    def generate(
        self, questions: Sequence[Question], shots: Sequence[Question], cell: Cell
    ) -> None:
        """Answer each question greedily, up to the end of the line, and add the results of this draw to the cell."""
        correct = {method: [] for method in FREE_METHODS}
        texts = []
        for start in range(0, len(questions), self.settings.batch_size):
            chunk = questions[start : start + self.settings.batch_size]
            prompts = []
            for question in chunk:
                ids, kept = self.fit(question, shots)
                cell.dropped_shots += len(shots) - len(kept)
                prompts.append(ids)
            for question, text in zip(chunk, self.complete(prompts)):
                score = answer_scores(text, question.references, self.settings.answer_unit)
                correct["exact"].append(score.exact)
                correct["f1"].append(score.f1)
                texts.append(text)
                self.advance()
        cell.add(correct)
        cell.answers.append(texts)

    def complete(self, prompts: Sequence[list[int]]) -> list[str]:
        """The first line of the most probable continuation of each prompt."""
        ids, mask = left_pad(prompts, self.run.pad_token_id)  # (B, P)
        decoded = decode(
            self.run.model,
            ids.to(self.run.device),
            mask.to(self.run.device),
            stop_token_ids=stop_token_ids(self.run.model, self.run.tokenizer),
            max_completion_length=self.settings.max_answer_length,
            temperature=1.0,
            uniforms=None,
        )
        texts = []
        for row, counts, ended in zip(decoded.ids.cpu(), decoded.mask.cpu(), decoded.ended):
            text = completion_text(self.run.tokenizer, row[counts].tolist(), ended=bool(ended))
            texts.append(text.split("\n")[0].strip())
        return texts
