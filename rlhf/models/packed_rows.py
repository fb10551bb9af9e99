"""Packed rows: several examples in one sequence, which only their position_ids tell apart.

Attention masks what belongs to another example. Recurrent models (Mamba, LFM2) carry their state on, and OPT counts
positions by itself. Which kind a model is, is measured.
"""

import torch
from torch import Tensor, nn

from rlhf.errors import UserError
from rlhf.models.logits import largest

EXAMPLE = 8  # tokens of each of the two that are packed
# Both are shares of the largest logit.
LEAK = 1e-5  # what is masked adds exactly 0, in bf16 too
ROUNDING = 0.05  # between a row alone and in a longer one: bf16 has been seen to differ by 0.01
REMEDY = "set packing: false, or start from another architecture, such as Llama, Qwen or GPT-2"


@torch.no_grad()
def check_packing(model: nn.Module, path: str) -> None:
    """Refuse packing for a model that reads an example of a packed row differently than the example alone."""
    if model.config._attn_implementation not in ("eager", "sdpa"):  # others may need another device
        return
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(3 * EXAMPLE, device=model.device) % vocabulary
    first, other, second = ids.split(EXAMPLE)
    was_training = model.training
    model.eval()  # dropout would make every pass another one
    try:
        alone = packed_logits(model, second)
        behind_first = packed_logits(model, first, second)
        behind_other = packed_logits(model, other, second)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"packing: {path} cannot read packed rows ({str(error).splitlines()[0]}): {REMEDY}"
        ) from error
    finally:
        model.train(was_training)
    scale = largest(alone)
    leak = largest(behind_first - behind_other)
    if leak > LEAK * scale or largest(behind_first - alone) > ROUNDING * scale:
        raise UserError(
            f"packing: {path} ({type(model).__name__}) reads the examples of a packed row into each other: {REMEDY}"
        )


def packed_logits(model: nn.Module, *examples: Tensor) -> Tensor:
    """Logits (L, V) of the last of the examples, each (L,), in one row as TRL packs them."""
    positions = [torch.arange(len(example), device=example.device) for example in examples]
    output = model(
        input_ids=torch.cat(examples).unsqueeze(0),
        position_ids=torch.cat(positions).unsqueeze(0),
        use_cache=False,
    )
    return output.logits[0, -len(examples[-1]) :].float()
