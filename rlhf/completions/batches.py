"""Sampling in batches, for a rollout whose keys and values do not fit into the memory at once."""

import torch
from torch import Tensor

from rlhf.completions.sample import SampledTokens, decode


def decode_in_batches(
    policy,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    batch_size: int,
    uniforms: Tensor | None,
    **options,
) -> SampledTokens:
    """`decode`, at most `batch_size` rows at a time: the same completions, each a function of its own row.

    Prompts of like length share a batch, without the columns that are padding in all of them.

    prompt_ids, prompt_mask (B, P): left-padded
    uniforms (B, max_completion_length): or None, to take the most probable tokens
    options: of `decode`
    """
    if batch_size >= len(prompt_ids):
        return decode(policy, prompt_ids, prompt_mask, uniforms=uniforms, **options)
    order = prompt_mask.sum(1).argsort(stable=True)
    batches = []
    for index in order.split(batch_size):
        first = int(prompt_mask[index].any(0).float().argmax())
        own_uniforms = None
        if uniforms is not None:
            own_uniforms = uniforms[index.to(uniforms.device)]
        ids, mask = prompt_ids[index, first:], prompt_mask[index, first:]
        batches.append(decode(policy, ids, mask, uniforms=own_uniforms, **options))
    return _joined(batches, order)


def _joined(batches: list[SampledTokens], order: Tensor) -> SampledTokens:
    """The batches as one, row i of them at order[i]."""
    width = max(batch.ids.shape[1] for batch in batches)
    ids, masks = [], []
    for batch in batches:
        missing = width - batch.ids.shape[1]
        # Any id will do: it is outside the mask.
        padding = batch.ids[:, -1:].expand(-1, missing)
        ids.append(torch.cat([batch.ids, padding], dim=1))
        masks.append(torch.nn.functional.pad(batch.mask, (0, missing)))
    back = order.argsort()  # order[back[i]] = i
    return SampledTokens(
        ids=torch.cat(ids)[back],
        mask=torch.cat(masks)[back],
        ended=torch.cat([batch.ended for batch in batches])[back],
    )
