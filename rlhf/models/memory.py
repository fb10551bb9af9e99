"""How much memory PPO training takes, said before it starts: an estimate per item, for one process.

What is always there, and what only a rollout or only an update needs: the two take turns, so the larger one counts.
Left out: the CUDA context (about 0.5 GB), what the allocator cannot reuse, DDP's buckets (as much as the gradients),
and the forward passes of reference and reward models, which keep nothing. GB means 2^30 bytes.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOGITS_BYTES = 20  # per position and vocabulary entry: five fp32 tensors at once in log_probs.py
SAMPLING_BYTES = 12  # per row and entry: three fp32 tensors at once in decoding.sample_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes by item. always: models, the optimiser's moments, the averaged weights; rollout, update: what comes on top
    while completions are sampled, and while the policy is updated."""

    weights: dict[str, int]
    optimizer: int
    ema: int
    rollout: dict[str, int]
    update: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.needed

    @property
    def needed(self) -> int:
        """What the run will take beyond the models, which are loaded already."""
        return (
            self.optimizer + self.ema + max(sum(self.rollout.values()), sum(self.update.values()))
        )

    def table(self) -> str:
        """One line per item in GB, and the total."""
        rows = [(f"{name}, weights", size) for name, size in self.weights.items()]
        rows += [("AdamW's moments", self.optimizer)] + [
            ("averaged weights (EMA)", self.ema)
        ] * bool(self.ema)
        rows += [(f"in a rollout: {name}", size) for name, size in self.rollout.items()]
        rows += [(f"in an update: {name}", size) for name, size in self.update.items()]
        rows += [("largest at one time", self.total)]
        title = "memory of one process, estimated"
        width = max(len(name) for name, _ in [*rows, (title, 0)])
        lines = [f"  {name:<{width}} {size / 2**30:9.3f}" for name, size in rows]
        return "\n".join([f"  {title:<{width}} {'GB':>9}", *lines])

    def warning(self, free: int) -> str | None:
        """What to change when the run does not fit into `free` bytes, measured with the models loaded, or None."""
        if self.needed <= free:
            return None
        if sum(self.rollout.values()) > sum(self.update.values()):
            remedy = "a smaller rollout_batch_size, max_completion_length or max_prompt_length"
        else:
            remedy = "a smaller per_device_train_batch_size (with more gradient_accumulation_steps)"
        return (
            f"memory: the run needs about {self.needed / 2**30:.2f} GB beside the models, {free / 2**30:.2f} GB are "
            f"free: use {remedy}, use_peft: true, value_model: shared, or bf16: true"
        )


def estimate_memory(
    models: dict[str, nn.Module | None],
    *,
    trainable: list[nn.Parameter],
    ema: bool,
    micro_batch: int,
    rollout_batch: int,
    prompt_length: int,
    completion_length: int,
    chunk: int,
    computes_in_16_bit: bool,
) -> Memory:
    """The memory of PPO on `models`, of which the first is the policy; None for a model that the run does without.

    Weights: bytes of parameters and buffers, each storage counted once, at the first model that holds it.
    Gradients: bytes of the trainable parameters. AdamW: twice as much (two moments, of the parameters' own dtype). EMA:
    once more. KV cache: 2 * layers * rollout_batch * (P + T) * kv heads * head width * bytes.

    micro_batch, rollout_batch: rows of one process; lengths in tokens; chunk: positions of a block of the log-softmax;
    computes_in_16_bit: bf16 or fp16 of TrainingArguments (autocast).
    """
    seen: set = set()
    weights = {name: own_bytes(model, seen) for name, model in models.items() if model is not None}
    policy = next(iter(models.values()))
    trained = {id(p) for p in trainable}
    gradients = sum(p.nbytes for p in {id(p): p for p in trainable}.values())
    learning = [
        m
        for m in models.values()
        if m is not None and any(id(p) in trained for p in m.parameters())
    ]
    trunks = [
        m for m in learning if hasattr(m, "config")
    ]  # a value head beside the policy has no layers
    length, vocabulary = prompt_length + completion_length, policy.config.vocab_size
    update = {
        "gradients": gradients,
        "activations": sum(
            micro_batch * length * layer_bytes(m, length, computes_in_16_bit=computes_in_16_bit)
            for m in trunks
        ),
        "logits": min(micro_batch * completion_length, chunk) * vocabulary * LOGITS_BYTES,
    }
    if computes_in_16_bit:
        update["16-bit copies of the weights"] = sum(copied_bytes(m) for m in trunks)
    return Memory(
        weights=weights,
        optimizer=2 * gradients,
        ema=gradients if ema else 0,
        rollout={
            "keys and values": rollout_batch
            * length
            * cache_bytes(policy, computes_in_16_bit=computes_in_16_bit),
            "prompts' forward, or next tokens": rollout_batch
            * max(
                prompt_length * reading_bytes(policy, computes_in_16_bit=computes_in_16_bit),
                vocabulary * SAMPLING_BYTES,
            ),
        },
        update=update,
    )


def own_bytes(model: nn.Module, seen: set) -> int:
    """Bytes of the parameters and buffers whose storage is not in `seen`; they are added to it."""
    total = 0
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        key = (
            tensor.device,
            tensor.untyped_storage().data_ptr() or id(tensor),
        )  # meta tensors have no address
        if key not in seen:
            seen.add(key)
            total += tensor.nbytes
    return total


def layer_bytes(model: nn.Module, length: int, *, computes_in_16_bit: bool) -> int:
    """What all layers keep for the backward pass, per token of a row of `length`, without checkpointing.

    Korthikanti et al. 2022 (arXiv 2205.05198), equation 1: h (34 + 5 a s / h) bytes per token and layer in 16 bit; a
    heads, s tokens. Ours, counted on transformers 5's GPT-2 with `use_fast_kernels`: dropout is off, which saves its masks,
    and leaves 18 numbers per unit of h: fp32 72 bytes, 16-bit weights 36. Autocast: 40, for the fp32 inputs of the norms.
    Attention without a fused kernel keeps its probabilities too: a s numbers, under autocast in fp32 and in 16 bit. A
    Llama keeps 27 numbers when its MLP is 4h wide. LoRA adds 1 to 3 bytes, over 16-bit weights 17, since its matrices stay
    fp32.
    """
    config = model.config
    bytes_of = weight_bytes(model)
    kept = config.hidden_size * (40 if computes_in_16_bit else 18 * bytes_of)
    if getattr(config, "_attn_implementation", None) == "eager":
        kept += config.num_attention_heads * length * (6 if computes_in_16_bit else bytes_of)
    return config.num_hidden_layers * kept


def reading_bytes(model: nn.Module, *, computes_in_16_bit: bool) -> int:
    """What one layer holds at a time per token, without a backward pass: all prompts are read in one go.

    Per unit of h: before and after GELU 4h each, beside 2 of h: 10 numbers; autocast 24 bytes.
    """
    return model.config.hidden_size * (24 if computes_in_16_bit else 10 * weight_bytes(model))


def cache_bytes(model: nn.Module, *, computes_in_16_bit: bool) -> int:
    """Keys and values of one token: 2 * layers * kv heads * head width * bytes of a number."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        2
        * config.num_hidden_layers
        * heads
        * width
        * (2 if computes_in_16_bit else weight_bytes(model))
    )


def copied_bytes(model: nn.Module) -> int:
    """Autocast keeps a 16-bit copy of every fp32 weight matrix until the backward pass is over."""
    return sum(
        2 * p.numel() for p in model.parameters() if p.dim() > 1 and p.dtype == torch.float32
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of one number in the model's matrices; with LoRA, in those it stands beside."""
    matrices: list[Tensor] = [p for p in model.parameters() if p.dim() > 1]
    return max(matrices, key=lambda p: p.numel()).itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device; on a CPU, what the whole machine has to give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
