"""Bits per byte of a model by the number of tokens that it has read before: does a longer context help it?

bits per byte = sum of -log2 p(token | tokens before it in its row) / UTF-8 bytes of these tokens, over the tokens with as
many tokens before them. `run.py` calls it. The groups together are the bits per byte of the run.
"""

import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from rlhf.data.load import load_rows
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.tasks.pretraining.bits_per_byte import byte_counter
from rlhf.tasks.pretraining.encode import causal_blocks

STARTS = (1, 8, 32, 64, 128)  # the fewest tokens before, of each group


@torch.no_grad()
def bits_by_position(folder: Path, text: str, block_size: int) -> dict[str, float]:
    """Bits per byte of the model in a folder for each group of tokens, as "8 to 31", by the tokens before them.

    Groups without tokens are not there.

    text: file of rows with a "text". block_size: tokens per row.
    """
    texts = [row["text"] for row in load_rows(text, kinds=("text",)).rows]
    model = load_policy(str(folder)).eval()
    tokenizer = load_tokenizer(str(folder))
    rows, _ = causal_blocks(tokenizer, texts, block_size, cross_documents=False)
    bytes_of = byte_counter(tokenizer)
    nats = torch.zeros(block_size, dtype=torch.float64)
    sizes = torch.zeros(block_size, dtype=torch.float64)
    for i in range(len(rows)):
        ids = rows[i]["input_ids"]  # (L,)
        logits = model(input_ids=ids.unsqueeze(0)).logits[0, :-1]  # (L - 1, V)
        losses = cross_entropy(logits.float(), ids[1:], reduction="none")
        nats[1 : len(ids)] += losses.double()
        lengths = [bytes_of([token]) for token in ids[1:].tolist()]
        sizes[1 : len(ids)] += torch.tensor(lengths, dtype=torch.float64)
    groups = {}
    for start, stop in zip(STARTS, [*STARTS[1:], block_size], strict=True):
        if start < block_size:
            stop = min(stop, block_size)
            bits = nats[start:stop].sum() / math.log(2)
            if sizes[start:stop].any():  # some row is as long
                groups[f"{start} to {stop - 1}"] = float(bits / sizes[start:stop].sum())
    return groups
