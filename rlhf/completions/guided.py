"""Decoding with a value function: the tokens that a state offers, what each is worth, and re-ranking them by it.

PPO's value function V(s) predicts what a text so far will still earn. The worth of token a in state s is

    Q(s, a) = r(s, a) + gamma V(s + a),    r(s, a) = -kl_coef (log pi(a|s) - log pi_ref(a|s))

and value-guided decoding draws from pi(a|s) exp(value_coef (Q(s, a) - V(s))) over the top k tokens of the policy, one step
of look-ahead. value_coef = 0 gives the policy's own top-k sampling. `tree_search` looks further ahead.

PPO trains V before each token and never after the last one. A token that ends the text therefore counts Q = V(s), as if it
were worth what the policy does there on average, unless `final` scores complete texts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.completions.sample import SampledTokens, sample_tokens
from rlhf.data.padding import left_pad, right_pad
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, last_states
from rlhf.models.logits import output_of
from rlhf.models.parts import trunk_of
from rlhf.models.scores import scores_of_states

Rows = list[list[int]]
# f(prompts, completions, ended) -> a score of each complete text
Final = Callable[[Rows, Rows, list[bool]], Tensor]


@dataclass(frozen=True)
class GuideSettings:
    """Settings of decoding with values.

    top_k: tokens of the policy that are looked at in each state.
    value_coef: of the advantage in value-guided decoding.
    simulations: of the tree search, for each token.
    c_puct: the weight of its exploration, in units of the score.
    kl_coef, gamma: of the reward, as PPO had them.
    stop_token_ids: any of them ends a text. max_completion_length: in tokens.
    """

    top_k: int
    stop_token_ids: tuple[int, ...]
    max_completion_length: int
    value_coef: float = 1.0
    simulations: int = 16
    c_puct: float = 1.0
    kl_coef: float = 0.0
    gamma: float = 1.0


class Offers(NamedTuple):
    """The likeliest tokens of each state, (B, k) each, likeliest first; log_probs are those of the whole vocabulary."""

    tokens: Tensor
    log_probs: Tensor
    rewards: Tensor


class Guide:
    """Policy, value function and perhaps a reference, on lists of token ids. Counts the rows that each model reads.

    Every row is read as a whole, without a cache. passes: rows by model; a head on the policy's trunk costs none of its own.
    """

    def __init__(
        self,
        model: ActorCritic,
        *,
        pad_token_id: int,
        temperature: float = 1.0,
        reference=None,
        batch_size: int = 64,
    ):
        self.model, self.reference = model, reference
        self.pad_token_id, self.batch_size = pad_token_id, batch_size
        self.temperature = temperature
        self.passes: Counter = Counter()
        self.tokens = 0  # of the completions so far

    def log_probs_and_values(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Log-probs of the next token (B, V) and values (B,), fp32, after each row."""
        log_probs, values = [], []
        for ids, mask in self._batches(rows):
            hidden = self._states(self.model.policy, "policy", ids, mask)
            log_probs.append(self._log_probs(self.model.policy, hidden))
            values.append(self._values(hidden, ids, mask))
        return torch.cat(log_probs), torch.cat(values)

    def log_probs(self, rows: Rows) -> Tensor:
        """Log-probs of the next token (B, V), without values."""
        return self._all_log_probs(self.model.policy, "policy", rows)

    def values(self, rows: Rows) -> Tensor:
        """Values (B,) after each row."""
        values = []
        for ids, mask in self._batches(rows):
            hidden = None
            if self.model.value_head is not None:
                hidden = self._states(self.model.policy, "policy", ids, mask)
            values.append(self._values(hidden, ids, mask))
        return torch.cat(values)

    def offers(self, rows: Rows, log_probs: Tensor, settings: GuideSettings) -> Offers:
        """The likeliest tokens after each row, and the reward of each. log_probs (B, V): of the rows."""
        top = log_probs.topk(min(settings.top_k, log_probs.shape[1]), dim=-1)
        rewards = torch.zeros_like(top.values)
        if settings.kl_coef and self.reference is not None:
            reference = self._all_log_probs(self.reference, "reference", rows)
            rewards = -settings.kl_coef * (top.values - reference.gather(1, top.indices))
        return Offers(top.indices, top.values, rewards)

    def final_scores(
        self, final: Final, prompts: Rows, completions: Rows, settings: GuideSettings
    ) -> Tensor:
        """Scores (B,) of complete texts."""
        self.passes["final"] += len(completions)
        ended = [completion[-1] in settings.stop_token_ids for completion in completions]
        return final(prompts, completions, ended)

    def passes_per_token(self) -> dict[str, float]:
        """The rows that each model has read for one token of a completion, to compare with best of n."""
        return {name: round(count / self.tokens, 3) for name, count in self.passes.items()}

    def _batches(self, rows: Rows):
        device = next(self.model.policy.parameters()).device
        for start in range(0, len(rows), self.batch_size):
            ids, mask = left_pad(rows[start : start + self.batch_size], self.pad_token_id)
            yield ids.to(device), mask.to(device)

    def _states(self, model, name: str, ids: Tensor, mask: Tensor) -> Tensor:
        """The state (B, H) at the last token of each row."""
        self.passes[name] += len(ids)
        return last_states(trunk_of(model), ids, mask)[:, -1]

    def _log_probs(self, model, hidden: Tensor) -> Tensor:
        logits = output_of(model)(hidden).float() / self.temperature
        check_finite(logits.amax(-1))
        return torch.log_softmax(logits, dim=-1)

    def _all_log_probs(self, model, name: str, rows: Rows) -> Tensor:
        parts = []
        for ids, mask in self._batches(rows):
            parts.append(self._log_probs(model, self._states(model, name, ids, mask)))
        return torch.cat(parts)

    def _values(self, hidden: Tensor | None, ids: Tensor, mask: Tensor) -> Tensor:
        head, model = self.model.value_head, self.model.value_model
        if head is not None:
            values = head(hidden.to(head.weight.dtype)).squeeze(-1).float()
        else:
            values = scores_of_states(model, self._states(model, "value", ids, mask))
        check_finite(values)
        return values


def check_finite(numbers: Tensor) -> None:
    """UserError for NaN and infinity, which would choose the same token after every prompt."""
    if not numbers.isfinite().all():
        raise UserError(
            "the policy or its value function gives no finite numbers: use a higher temperature, or a run whose training "
            "did not diverge"
        )


@torch.no_grad()
def decode_by_value(
    guide: Guide,
    prompts: Rows,
    settings: GuideSettings,
    *,
    uniforms: Tensor | None,
    final: Final | None = None,
) -> SampledTokens:
    """Continue each prompt, drawing each token from pi(a|s) exp(value_coef (Q(s, a) - V(s))) over the policy's top k.

    uniforms (B, max_completion_length): one number for each token, or None to take the likeliest.
    """
    completions: Rows = [[] for _ in prompts]
    active = list(range(len(prompts)))
    worth = guide.values(prompts)  # V of each active row
    for step in range(settings.max_completion_length):
        rows = [prompts[i] + completions[i] for i in active]
        log_probs = guide.log_probs(rows)
        offers = guide.offers(rows, log_probs, settings)
        own_prompts = [prompts[i] for i in active]
        own_completions = [completions[i] for i in active]
        values, complete = values_after(
            guide, own_prompts, own_completions, offers.tokens, settings, final
        )
        # The score of a complete text is a part of its last token's reward, and not discounted.
        quality = offers.rewards + torch.where(complete, values, settings.gamma * values)
        advantages = quality - worth.unsqueeze(1)
        if final is None:
            advantages = advantages.masked_fill(complete, 0.0)
        logits = torch.full_like(log_probs, -torch.inf)
        logits.scatter_(1, offers.tokens, offers.log_probs + settings.value_coef * advantages)
        chosen = choose(logits, uniforms, active, step)
        for i, token in zip(active, chosen.tolist(), strict=True):
            completions[i].append(token)
        # The next state's value is known already.
        column = (offers.tokens == chosen.unsqueeze(1)).float().argmax(1, keepdim=True)
        goes_on = torch.nonzero(~is_stop(chosen, settings)).squeeze(1)
        worth = values.gather(1, column).squeeze(1)[goes_on]
        active = [active[j] for j in goes_on.tolist()]
        if not active:
            break
    return as_sampled(guide, completions, settings)


def values_after(
    guide: Guide,
    prompts: Rows,
    completions: Rows,
    tokens: Tensor,
    settings: GuideSettings,
    final: Final | None,
) -> tuple[Tensor, Tensor]:
    """Values (B, k) of each row with each of its tokens (B, k), and which of these texts are complete (B, k).

    A complete text counts its score, and 0 without `final`.
    """
    values = torch.zeros(tokens.shape, device=tokens.device)
    complete = is_stop(tokens, settings)
    # A text that is cut off is scored as well.
    if final is not None and len(completions[0]) + 1 == settings.max_completion_length:
        complete = torch.ones_like(complete)
    longer = []
    for text, own_tokens in zip(completions, tokens.tolist(), strict=True):
        longer.append([[*text, token] for token in own_tokens])
    goes_on = (~complete).nonzero().tolist()
    if goes_on:
        rows = [prompts[i] + longer[i][j] for i, j in goes_on]
        values[~complete] = guide.values(rows)
    ends = complete.nonzero().tolist()
    if ends and final is not None:
        texts = [longer[i][j] for i, j in ends]
        scores = guide.final_scores(final, [prompts[i] for i, _ in ends], texts, settings)
        values[complete] = scores.to(values)
    return values, complete


def is_stop(tokens: Tensor, settings: GuideSettings) -> Tensor:
    """True for the tokens that end a text, any shape."""
    return torch.isin(tokens, torch.tensor(settings.stop_token_ids, device=tokens.device))


def choose(logits: Tensor, uniforms: Tensor | None, active: Sequence[int], step: int) -> Tensor:
    """A token (B,) of each active row."""
    if uniforms is None:
        return logits.argmax(-1)
    return sample_tokens(logits, uniforms[list(active), step], temperature=1.0)


def as_sampled(guide: Guide, completions: Rows, settings: GuideSettings) -> SampledTokens:
    """Lists of token ids as the tensors of `decode`. Their tokens are counted."""
    guide.tokens += sum(map(len, completions))
    ids, mask = right_pad(completions, settings.stop_token_ids[0])
    ended = [completion[-1] in settings.stop_token_ids for completion in completions]
    return SampledTokens(ids, mask, torch.tensor(ended))
