"""Prompts -> completions, for rollouts, evaluation and reports.

Omitted on purpose: top-k, top-p and beams. Training must sample the very distribution it computes log-probs of. The
chat engine has them, and `rlhf sample` passes them as `warp`. A token is drawn by inverting the cumulative distribution
at one uniform number per row and step. These numbers are passed in, not drawn here, so a completion depends on its own
row only: not on its batch, on rows that have finished, or on how rows are spread over processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.masking import where_doubles_exist
from rlhf.completions.cache import Decoder

BLOCK = 128  # tokens of the vocabulary that the sampling search sums up before it looks inside


@dataclass(frozen=True)
class SampledTokens:
    """Completions as token ids.

    ids (B, T): right-padded
    mask (B, T) bool: True up to the stop token inclusive
    ended (B,) bool: True when the completion has its stop token
    """

    ids: Tensor
    mask: Tensor
    ended: Tensor


def uniform_numbers(rows: int, length: int, *, seed: int, stream: int) -> Tensor:
    """(rows, length) numbers in [0, 1), the same on every machine and process for the same seed and stream."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)
    return torch.rand(rows, length, generator=generator, dtype=torch.float64)


def sample_tokens(logits: Tensor, uniforms: Tensor, *, temperature: float) -> Tensor:
    """One token per row: the first whose cumulative probability exceeds the row's number. (B, V), (B,) -> (B,).

    In two steps, the block of the vocabulary and the token inside it: cumulative sums in fp64 over all of it would take
    longer than the model's own forward pass. A token of probability 0 is never drawn.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    probabilities = where_doubles_exist(probabilities)
    missing = -probabilities.shape[1] % BLOCK  # to a multiple of BLOCK
    padded = torch.nn.functional.pad(probabilities, (0, missing))
    blocks = padded.view(len(logits), -1, BLOCK)
    reached = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (B, V / BLOCK)
    threshold = uniforms.to(reached.device).unsqueeze(1) * reached[:, -1:]
    block = torch.searchsorted(reached, threshold, right=True)  # (B, 1)
    block = block.clamp(max=reached.shape[1] - 1)
    previous = (block - 1).clamp(min=0)
    before = torch.where(block > 0, reached.gather(1, previous), 0.0)  # sum of the blocks before
    rows = torch.arange(len(blocks), device=block.device)
    inside = blocks[rows, block.squeeze(1)].to(torch.float64).cumsum(-1)  # (B, BLOCK)
    # The sums over blocks and inside one round differently: stay below the last of the block.
    rest = torch.minimum(threshold - before, inside[:, -1:] * (1 - 1e-12))
    token = block * BLOCK + torch.searchsorted(inside, rest, right=True)
    token = token.squeeze(1).to(logits.device)
    return token.clamp(max=logits.shape[1] - 1)  # NaN points past the end. The log-probs show it.


@torch.no_grad()
def decode(
    policy,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    stop_token_ids: Sequence[int],
    max_completion_length: int,
    temperature: float,
    uniforms: Tensor | None,
    warp: Callable[[Tensor], Tensor] | None = None,
) -> SampledTokens:
    """Continue each prompt to its stop token or `max_completion_length`; finished rows leave the batch.

    prompt_ids, prompt_mask (B, P): left-padded
    stop_token_ids: any of them ends a completion
    uniforms (B, max_completion_length): or None, to take the most probable token each time
    warp: logits (B, V) -> those to sample from, before the temperature
    """
    rows, device = len(prompt_ids), prompt_ids.device
    stop_tokens = torch.tensor(stop_token_ids, device=device)
    ids = torch.full((rows, max_completion_length), stop_token_ids[0], device=device)
    lengths = torch.full((rows,), max_completion_length, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    # The batch shrinks: `active` is the row of the result that each of its rows belongs to.
    active = torch.arange(rows, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)  # per row of the batch
    decoder = Decoder(policy, prompt_ids, prompt_mask)

    for step in range(max_completion_length):
        logits = decoder.next_logits()  # (batch, V)
        if warp is not None:
            logits = warp(logits)
        if uniforms is None:
            chosen = logits.argmax(-1)
        else:
            chosen = sample_tokens(logits, uniforms[active.cpu(), step], temperature=temperature)
        ids[active, step] = torch.where(finished, ids[active, step], chosen)
        stops = torch.isin(chosen, stop_tokens) & ~finished
        lengths[active[stops]] = step + 1
        ended[active[stops]] = True
        finished = finished | stops
        remaining = int((~finished).sum())
        if remaining == 0:
            break
        decoder.append(chosen)
        # A copy of the cache is worth its time only when it becomes clearly smaller.
        if remaining <= 0.75 * len(active):
            kept = torch.nonzero(~finished).squeeze(1)
            if decoder.keep_rows(kept):
                active, finished = active[kept], finished[kept]

    width = int(lengths.max())
    mask = torch.arange(width, device=device) < lengths.unsqueeze(1)
    return SampledTokens(ids[:, :width], mask, ended)
