"""PPO-MCTS: a tree search over tokens with PPO's policy as its prior and PPO's value function at its leaves.

Liu et al. 2023, "Don't throw away your value model!", arXiv 2309.15028. For each token, `simulations` times:

    select     from the root down the token with the highest Q(s, a) + c_puct pi(a|s) sqrt(N(s)) / (1 + N(s, a))
    expand     a new state offers the top k tokens of the policy; their Q starts at V(s), not at 0
    evaluate   V of the new state, or the score of a complete text
    back up    G = r(s, a) + gamma G up the path; Q(s, a) is the mean of its G

Then a token is drawn in proportion to its visits, and the tree below it is kept. A prompt's search depends on no other
prompt: only the forward passes of the rows are shared.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.completions.guided import Final, Guide, GuideSettings, Rows, as_sampled, choose
from rlhf.completions.sample import SampledTokens


@dataclass
class State:
    """A text in the tree: what it is worth, and k numbers for the tokens that it offers. A complete text offers none."""

    completion: list[int]
    value: float
    complete: bool = False
    tokens: list[int] = field(default_factory=list)
    priors: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    visits: list[int] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    children: list["State | None"] = field(default_factory=list)

    def quality(self, j: int) -> float:
        """Q of the token of index j: the mean of its returns, or the state's own value before its first."""
        if self.visits[j] == 0:
            return self.value
        return self.totals[j] / self.visits[j]


@dataclass
class Path:
    """Steps (state, index of its token) from the root. leaf: the known state at its end; None where it is to be read."""

    steps: list[tuple[State, int]]
    leaf: State | None

    def new_completion(self) -> list[int]:
        state, j = self.steps[-1]
        return [*state.completion, state.tokens[j]]


@torch.no_grad()
def decode_by_search(
    guide: Guide,
    prompts: Rows,
    settings: GuideSettings,
    *,
    uniforms: Tensor | None,
    final: Final | None = None,
) -> SampledTokens:
    """Continue each prompt, drawing each token in proportion to its visits.

    uniforms (B, max_completion_length): one number for each token, or None to take the token with the most visits.
    """
    completions: Rows = [[] for _ in prompts]
    active = list(range(len(prompts)))
    roots = read_states(guide, prompts, completions, settings)
    # All trees grow together: each simulation reads one new state of every prompt in one batch.
    for step in range(settings.max_completion_length):
        own = [prompts[i] for i in active]
        for _ in range(settings.simulations):
            simulate(guide, own, roots, settings, final)
        chosen = choose(visit_logits(roots), uniforms, active, step).tolist()
        next_active, next_roots = [], []
        for i, root, j in zip(active, roots, chosen, strict=True):
            # The subtree of the chosen token is kept, with its visits, for the next token.
            child = root.children[j]
            completions[i] = child.completion
            # A complete text offers nothing.
            if child.tokens:
                next_active.append(i)
                next_roots.append(child)
        active, roots = next_active, next_roots
        if not active:
            break
    return as_sampled(guide, completions, settings)


def simulate(
    guide: Guide, prompts: Rows, roots: list[State], settings: GuideSettings, final: Final | None
) -> None:
    """One simulation in the tree of each prompt; the new states of all trees are read together."""
    paths = [select(root, settings.c_puct) for root in roots]
    new = [i for i, path in enumerate(paths) if path.leaf is None]
    complete, open_ended = [], []
    for i in new:
        # A complete text needs no forward pass of the policy.
        if is_complete(paths[i].new_completion(), settings, final):
            complete.append(i)
        else:
            open_ended.append(i)
    if open_ended:
        texts = [paths[i].new_completion() for i in open_ended]
        states = read_states(guide, [prompts[i] for i in open_ended], texts, settings)
        for i, state in zip(open_ended, states, strict=True):
            attach(paths[i], state)
    if complete:
        values = values_of_complete(guide, prompts, paths, complete, settings, final)
        for i, value in zip(complete, values, strict=True):
            attach(paths[i], State(paths[i].new_completion(), value, complete=True))
    # A path that ended at a known state is worth what that state is worth, and is backed up too.
    for path in paths:
        back_up(path, settings, scored=final is not None)


def select(root: State, c_puct: float) -> Path:
    """Down the tree by PUCT, to a token without a state or to a complete text."""
    steps: list[tuple[State, int]] = []
    state: State | None = root
    while state is not None and state.tokens:
        j = best_token(state, c_puct)
        steps.append((state, j))
        state = state.children[j]
    return Path(steps, state)


def best_token(state: State, c_puct: float) -> int:
    """The index of the highest Q(s, a) + c_puct pi(a|s) sqrt(N(s)) / (1 + N(s, a)); of equal ones the likeliest."""
    root_of_visits = math.sqrt(1 + sum(state.visits))  # N(s) counts its own reading
    scores = []
    for j, prior in enumerate(state.priors):
        explored = c_puct * prior * root_of_visits / (1 + state.visits[j])
        scores.append(state.quality(j) + explored)
    return scores.index(max(scores))


def is_complete(completion: list[int], settings: GuideSettings, final: Final | None) -> bool:
    """True for a text whose search ends there: after its stop token, and at the limit if complete texts are scored."""
    if completion[-1] in settings.stop_token_ids:
        return True
    return final is not None and len(completion) == settings.max_completion_length


def read_states(
    guide: Guide, prompts: Rows, completions: Rows, settings: GuideSettings
) -> list[State]:
    """New states of texts that go on. At the limit of length a state has its value and offers nothing."""
    rows = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
    log_probs, values = guide.log_probs_and_values(rows)
    offers = guide.offers(rows, log_probs, settings)
    states = []
    for i, (text, value) in enumerate(zip(completions, values.tolist(), strict=True)):
        state = State(list(text), value)
        if len(text) < settings.max_completion_length:
            state.tokens = offers.tokens[i].tolist()
            # Among the k tokens the priors sum to 1.
            state.priors = torch.softmax(offers.log_probs[i], -1).tolist()
            state.rewards = offers.rewards[i].tolist()
            width = len(state.tokens)
            state.visits, state.totals = [0] * width, [0.0] * width
            state.children = [None] * width
        states.append(state)
    return states


def values_of_complete(
    guide: Guide,
    prompts: Rows,
    paths: list[Path],
    chosen: list[int],
    settings: GuideSettings,
    final: Final | None,
) -> list[float]:
    """The score of each complete text at the end of a path, or without scores the value of the state before its end."""
    if final is None:
        return [paths[i].steps[-1][0].value for i in chosen]
    texts = [paths[i].new_completion() for i in chosen]
    return guide.final_scores(final, [prompts[i] for i in chosen], texts, settings).tolist()


def attach(path: Path, state: State) -> None:
    parent, j = path.steps[-1]
    parent.children[j] = path.leaf = state


def back_up(path: Path, settings: GuideSettings, *, scored: bool) -> None:
    """Add the return of the path to each of its steps. scored: complete texts have scores, not the value before them."""
    result = path.leaf.value
    # Of the last step alone: the score is a part of its reward, and an end without a score is worth Q = V(s).
    last = path.leaf.complete
    for state, j in reversed(path.steps):
        if not last:
            result = state.rewards[j] + settings.gamma * result
        elif scored:
            result = state.rewards[j] + result
        last = False
        state.visits[j] += 1
        state.totals[j] += result


def visit_logits(roots: list[State]) -> Tensor:
    """log N(s, a) (B, k) of the tokens that each root offers: -inf without a visit."""
    visits = torch.tensor([root.visits for root in roots], dtype=torch.float32)
    return visits.log()
