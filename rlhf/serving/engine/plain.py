"""One request after the other through transformers' `generate`: for models whose cache cannot hold a changing batch.

It takes every architecture, and the tests hold the other way to generate to its tokens.
"""

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from rlhf.serving.engine.answers import Answer, Request
from rlhf.serving.engine.models import ServedModel
from rlhf.serving.engine.sampling import choose_tokens


class PlainGenerator:
    """Generates the answers to one request at a time.

    between_tokens: called after each token, so that other models get their turn.
    """

    def __init__(self, served: ServedModel, between_tokens=lambda: None):
        self.served, self.between_tokens = served, between_tokens
        self.answers: list[Answer] = []

    @property
    def busy(self) -> bool:
        return bool(self.answers)

    def has_room(self, request: Request, joining: list[Answer]) -> bool:
        return not self.answers and not joining

    def add(self, answers: list[Answer]) -> None:
        self.answers += answers

    @torch.inference_mode()
    def step(self) -> None:
        """Generate all answers to the oldest request."""
        request = self.answers[0].request
        answers = [answer for answer in self.answers if answer.request is request]
        self.answers = [answer for answer in self.answers if answer.request is not request]
        try:
            self._generate(answers)
        except Exception as error:  # noqa: BLE001
            request.fail(error)

    def _generate(self, answers: list[Answer]) -> None:
        if all([answer.stop_if_asked() for answer in answers]):
            return
        model = self.served.model
        prompt = torch.tensor([answer.prompt_ids for answer in answers], device=model.device)
        chooser = _Chooser(answers)
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,  # the chooser samples
            max_new_tokens=answers[0].room,
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([_TakeTokens(chooser, self.between_tokens)]),
        )


class _Chooser(LogitsProcessor):
    """Draws each row's token and leaves only that one possible, so that greedy decoding takes it."""

    def __init__(self, answers: list[Answer]):
        self.answers = answers
        self.chosen: list[int | None] = []
        self.logits: torch.Tensor | None = None

    def __call__(self, input_ids, scores):
        self.logits = scores
        # A finished row is generated until the last one ends.
        growing = [i for i, answer in enumerate(self.answers) if not answer.over]
        tokens = choose_tokens(scores[growing], [self.answers[i] for i in growing])
        self.chosen = [0] * len(self.answers)
        for i, token in zip(growing, tokens, strict=True):
            self.chosen[i] = token
        possible = torch.tensor([token or 0 for token in self.chosen], device=scores.device)
        impossible = torch.full_like(scores, float("-inf"))
        return impossible.scatter(1, possible.unsqueeze(1), 0.0)


class _TakeTokens(StoppingCriteria):
    """Hands each new token to its answer, and ends the rows whose answers are over."""

    def __init__(self, chooser: _Chooser, between_tokens):
        self.chooser, self.between_tokens = chooser, between_tokens

    def __call__(self, input_ids, scores, **kwargs):
        over = []
        for i, answer in enumerate(self.chooser.answers):
            if not answer.over:
                answer.take(self.chooser.chosen[i], self.chooser.logits[i])
                answer.stop_if_asked()
            over.append(answer.over)
        self.between_tokens()
        return torch.tensor(over, device=input_ids.device)
