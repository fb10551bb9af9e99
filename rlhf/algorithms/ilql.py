"""Implicit language Q-learning (ILQL), Snell et al. 2022, arXiv 2206.11871: values of tokens, learned from scored answers.

State s_t is the prompt with the first t tokens of an answer, action a_t is its next token. An answer of T tokens earns its
score at the last one and nothing before. Two functions Q(s, a), of which the smaller counts, and one V(s) are learned of the
answers that are there; nothing is sampled. V is an upper expectile of Q over the tokens that the data take in a state, so
that it is near the best of them without ever asking for the Q of a token that no answer has (equation 4).

Deviations: the terms are averaged over tokens, and not summed over an answer, so that the learning rate does not depend on
its length; the clipping of Q at its targets' values is not used.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from rlhf.algorithms.log_probs import token_log_probs


def bellman_targets(values: Tensor, mask: Tensor, scores: Tensor, *, gamma: float) -> Tensor:
    """r_t + gamma V(s_t+1) (B, T), 0 outside the mask: the score at the last token, gamma times the next value before it.

    values (B, T): V(s_t), before token t. mask (B, T) bool: right-padded. scores (B,). gamma in [0, 1].
    The state after the last token is worth 0. A row without tokens has no target.
    """
    assert values.shape == mask.shape and scores.shape == mask.shape[:1], (values.shape, mask.shape)
    # Padding may hold anything, also NaN.
    after = values.masked_fill(~mask, 0.0)[:, 1:]
    after = torch.nn.functional.pad(after, (0, 1))  # V(s_t+1), 0 behind the last token
    # A token that counts, with none that counts behind it.
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    targets = gamma * after + torch.where(last, scores.unsqueeze(1), 0.0)
    return targets.masked_fill(~mask, 0.0)


def expectile_loss(differences: Tensor, *, expectile: float) -> Tensor:
    """|expectile - 1(u < 0)| u^2 of each difference u, any shape. Kostrikov et al. 2021, arXiv 2110.06169, equation 5.

    expectile in (0, 1): 0.5 is half the squared error, and the mean is its minimum; 1 would be the maximum.
    """
    # V below Q costs `expectile`, V above it 1 - expectile: so V rises until few of the Q are above it.
    weights = torch.where(differences < 0, 1 - expectile, expectile)
    return weights * differences**2


def chosen_and_log_probs(quality: Tensor, token_ids: Tensor, *, temperature: float) -> Tensor:
    """Q(s, a) of the tokens that were taken, and log softmax(Q(s, .))[a]: (N, V), (N,) -> (2, N), fp32.

    The second is minus the conservative term (CQL, Kumar et al. 2020, arXiv 2006.04779, equation 4): to raise it lowers the
    Q of tokens that the data do not take.
    """
    quality = quality.float()
    chosen = quality.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return torch.stack([chosen, token_log_probs(quality, token_ids, temperature=temperature)])


def answer_losses(
    *,
    quality: Tensor,
    quality_log_probs: Tensor,
    target: Tensor,
    values: Tensor,
    log_probs: Tensor,
    bellman: Tensor,
    expectile: float,
) -> dict[str, Tensor]:
    """The four terms of the loss for each token, (B, T) each. Equation 5, with one sum over both Q as in the authors' code.

    quality, quality_log_probs (2, B, T): `chosen_and_log_probs` of Q1 and Q2. target (B, T): the smaller of their slowly
    moving copies. values (B, T): V. log_probs (B, T): of the policy. bellman (B, T): `bellman_targets`.

    q: (Q(s, a) - bellman)^2. v: the expectile loss of target - V. cql: -log softmax(Q(s, .))[a]. nll: -log pi(a|s).
    Neither bellman nor target has a gradient.
    """
    assert quality.shape == quality_log_probs.shape == (2, *values.shape), quality.shape
    return {
        "q": ((quality - bellman.detach()) ** 2).sum(0),
        "v": expectile_loss(target.detach() - values, expectile=expectile),
        "cql": -quality_log_probs.sum(0),
        "nll": -log_probs,
    }


def guided_logits(logits: Tensor, quality: Tensor, values: Tensor, *, coef: float) -> Tensor:
    """Logits (..., V) of pi(a|s) exp(coef (Q(s, a) - V(s))) / Z, the policy of ILQL (section 4.3; its beta is `coef`).

    logits (..., V): of pi. quality (..., V): the smaller Q. values (...): V. coef >= 0: with 0 they are exactly those of pi.
    """
    # Not a sum with zeros: the logits stay those of the policy bit for bit.
    if coef == 0:
        return logits
    return logits + coef * (quality - values.unsqueeze(-1))


@torch.no_grad()
def move_towards(targets: Iterable[Tensor], sources: Iterable[Tensor], *, rate: float) -> None:
    """Polyak averaging, in place: target <- (1 - rate) target + rate source, of tensors of any shape. rate in (0, 1]."""
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, rate)
