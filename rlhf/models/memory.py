"""Estimate of the memory that PPO training takes, per item, for one process. A run prints it before it starts.

Some memory is always in use. A rollout and an update need more on top, but they take turns, so the larger one counts.
Not included: the CUDA context (about 0.5 GB), what the allocator cannot reuse, DDP's buckets (as much as the gradients),
and the forward passes of reference and reward models, which keep nothing. GB means 2^30 bytes.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf.models.kernels import set_aside
from rlhf.models.parts import shape_of
from rlhf.models.quantized import packing_bytes

GB = 2**30
# Linux's control groups, and which of them this process is in
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LOGITS_BYTES = (
    20  # per position and vocabulary entry: five fp32 tensors at once in algorithms/log_probs.py
)
MOST_FOR_SAMPLING = 0.8  # share of the spare memory, as an estimate is not exact
SAMPLING_BYTES = 12  # per row and entry: three fp32 tensors at once in completions/sample.py


@dataclass(frozen=True)
class Memory:
    """Bytes by item.

    weights: of each model.
    optimizer: AdamW's moments.
    ema: the averaged weights, 0 without them.
    rollout, update: what comes on top while completions are sampled, and while the policy is updated.
    sampling_batch, micro_batch: rows that are sampled and updated at a time.
    """

    weights: dict[str, int]
    optimizer: int
    ema: int
    rollout: dict[str, int]
    update: dict[str, int]
    sampling_batch: int = 1
    micro_batch: int = 1

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.needed

    @property
    def needed(self) -> int:
        """Bytes that the run will take beyond the models, which are loaded already."""
        # Rollout and update take turns, so that only the larger one counts.
        at_a_time = max(self.rollout_total, self.update_total)
        return self.optimizer + self.ema + at_a_time

    @property
    def rollout_total(self) -> int:
        return sum(self.rollout.values())

    @property
    def update_total(self) -> int:
        return sum(self.update.values())

    def table(self) -> str:
        """One line per item in GB, and the total."""
        rows = [(f"{name}, weights", size) for name, size in self.weights.items()]
        rows.append(("AdamW's moments", self.optimizer))
        if self.ema:
            rows.append(("averaged weights (EMA)", self.ema))
        rows += [(f"in a rollout: {name}", size) for name, size in self.rollout.items()]
        rows += [(f"in an update: {name}", size) for name, size in self.update.items()]
        rows.append(("largest at one time", self.total))
        title = "memory of one process, estimated"
        names = [title, *dict(rows)]
        width = max(map(len, names))
        lines = [f"  {title:<{width}} {'GB':>9}"]
        lines += [f"  {name:<{width}} {size / GB:9.3f}" for name, size in rows]
        return "\n".join(lines)

    def warning(self, free: int) -> str | None:
        """A remedy for a run that does not fit into `free` bytes, with the keys to lower and to what, or None.

        free: measured with the models loaded.
        """
        if self.needed <= free:
            return None
        spare = self._spare(free)
        remedies = []
        if self.rollout_total > spare:
            remedies.append(self._sampling_remedy(spare))
        if self.update_total > spare:
            remedies.append(self._update_remedy(spare))
        return (
            f"memory: the run needs about {self.needed / GB:.2f} GB besides the models, {free / GB:.2f} GB are "
            f"free: use {' and '.join(remedies)}; use_peft: true, value_model: shared or precision: bf16 takes less too"
        )

    def fitting_sampling_batch(self, free: int, *, most: int) -> int:
        """Rows to sample at a time so that they take most of the memory that is spare at the most, from 1 to `most`."""
        rows = int(MOST_FOR_SAMPLING * self._spare(free) // self._sampling_bytes_per_row)
        return max(1, min(rows, most))

    def _spare(self, free: int) -> int:
        """Bytes for a rollout or an update, once the optimizer has its moments."""
        return free - self.optimizer - self.ema

    @property
    def _sampling_bytes_per_row(self) -> float:
        return self.rollout_total / self.sampling_batch

    def _sampling_remedy(self, spare: int) -> str:
        rows = int(spare // self._sampling_bytes_per_row)
        if rows < 1:
            return "a smaller max_completion_length or max_prompt_length"
        return f"per_device_sampling_batch_size: {rows}"

    def _update_remedy(self, spare: int) -> str:
        activations = self.update.get("activations", 0)
        rows = 0
        if activations:
            others = self.update_total - activations
            rows = int((spare - others) // (activations / self.micro_batch))
        # So that the mini-batch keeps its size.
        divisors = [n for n in range(1, max(0, rows) + 1) if self.micro_batch % n == 0]
        if not divisors:
            return "a smaller per_device_train_batch_size (with more gradient_accumulation_steps) or a smaller model"
        times = self.micro_batch // divisors[-1]
        return f"per_device_train_batch_size: {divisors[-1]} (with {times} times the gradient_accumulation_steps)"


@dataclass(frozen=True)
class Load:
    """Sizes of the work of one process.

    micro_batch: rows of a forward and backward pass.
    rollout_batch: rows that are sampled at a time.
    prompt_length, completion_length: tokens, at most.
    chunk: positions in one block of the log-softmax.
    computes_in_16_bit: bf16 or fp16 of TrainingArguments (autocast).
    texts, text_length: plain texts that go with a micro-batch (PPO-ptx), and their tokens at most.
    checkpointing: layers keep their inputs alone and are run again in the backward pass.
    """

    micro_batch: int
    rollout_batch: int
    prompt_length: int
    completion_length: int
    chunk: int
    computes_in_16_bit: bool
    texts: int = 0
    text_length: int = 0
    checkpointing: bool = False

    @property
    def length(self) -> int:
        """Tokens of a whole row."""
        return self.prompt_length + self.completion_length


def estimate_memory(
    models: dict[str, nn.Module | None],
    *,
    trainable: list[nn.Parameter],
    ema: bool,
    **load,
) -> Memory:
    """The memory of PPO on `models`, of which the first is the policy; None for a model that the run does without.

    Weights: bytes of parameters and buffers, each storage counted once, at the first model that holds it.
    Gradients: bytes of the trainable parameters. AdamW: twice as much (two moments, of the parameters' own dtype). EMA:
    once more. KV cache: 2 * layers * rollout_batch * (P + T) * kv heads * head width * bytes.

    ema: the run keeps averaged weights.
    load: the fields of `Load`.
    """
    present = {name: model for name, model in models.items() if model is not None}
    policy = next(iter(present.values()))
    seen: set = set()  # storages that an earlier model holds
    weights = {name: own_bytes(model, seen) for name, model in present.items()}
    # A tied parameter may be listed twice.
    unique = {id(p): p for p in trainable}
    gradients = sum(p.nbytes for p in unique.values())
    trunks = []  # models whose layers keep activations for the backward pass
    for model in present.values():
        learns = any(id(p) in unique for p in model.parameters())
        if learns and hasattr(model, "config"):  # a value head by itself has no layers
            trunks.append(model)
    sizes = Load(**load)
    return Memory(
        weights=weights,
        optimizer=2 * gradients,
        ema=gradients if ema else 0,
        rollout=_rollout_bytes(policy, sizes),
        update={"gradients": gradients} | _update_bytes(policy, trunks, sizes),
        sampling_batch=sizes.rollout_batch,
        micro_batch=sizes.micro_batch,
    )


def _rollout_bytes(policy: nn.Module, load: Load) -> dict[str, int]:
    """Bytes of sampling by item: the cache, and the larger of the prompts' forward pass and the next-token logits."""
    cache = cache_bytes(policy, computes_in_16_bit=load.computes_in_16_bit)
    forward = forward_bytes(policy, computes_in_16_bit=load.computes_in_16_bit)
    sampling = shape_of(policy).vocabulary * SAMPLING_BYTES
    per_row = max(load.prompt_length * forward, sampling)
    return {
        "keys and values": load.rollout_batch * load.length * cache,
        "prompts' forward, or next tokens": load.rollout_batch * per_row,
    }


def _update_bytes(policy: nn.Module, trunks: list[nn.Module], load: Load) -> dict[str, int]:
    """Bytes of an update by item, besides the gradients."""
    activations = 0
    for model in trunks:
        per_token = _kept_bytes(model, load.length, load)
        activations += load.micro_batch * load.length * per_token
    if load.texts:  # the policy reads them in the same backward pass
        text_tokens = load.texts * load.text_length
        activations += text_tokens * _kept_bytes(policy, load.text_length, load)
    # The log-softmax goes through completions and texts in blocks.
    longest = max(load.micro_batch * load.completion_length, load.texts * load.text_length)
    positions = min(longest, load.chunk)
    update = {
        "activations": activations,
        "logits": positions * shape_of(policy).vocabulary * LOGITS_BYTES,
    }
    if load.computes_in_16_bit:
        update["16-bit copies of the weights"] = sum(copied_bytes(model) for model in trunks)
    return update


def _kept_bytes(model: nn.Module, length: int, load: Load) -> int:
    """Bytes that the layers keep for the backward pass, per token of a row of `length`."""
    whole = layer_bytes(model, length, computes_in_16_bit=load.computes_in_16_bit)
    if not load.checkpointing:
        return whole
    shape = shape_of(model)
    # The inputs of each layer, which autocast keeps in fp32, and all of the layer that is run again.
    number = 4 if load.computes_in_16_bit else weight_bytes(model)
    return shape.layers * shape.hidden_size * number + whole // shape.layers


def own_bytes(model: nn.Module, seen: set) -> int:
    """Bytes of the parameters and buffers whose storage is not in `seen`. Their storages are added to it.

    Of frozen matrices in bf16 the originals count too, which are kept for saving.
    """
    total = 0
    for tensor in itertools.chain(model.parameters(), model.buffers(), set_aside(model)):
        address = tensor.untyped_storage().data_ptr() or id(tensor)  # meta tensors have no address
        key = (tensor.device, address)
        if key not in seen:
            seen.add(key)
            total += tensor.nbytes + packing_bytes(tensor)
    return total


def layer_bytes(model: nn.Module, length: int, *, computes_in_16_bit: bool) -> int:
    """Bytes that all layers keep for the backward pass, per token of a row of `length`, without checkpointing.

    Korthikanti et al. 2022 (arXiv 2205.05198), equation 1: h (34 + 5 a s / h) bytes per token and layer in 16 bit; a
    heads, s tokens. Ours, counted on transformers 5's GPT-2 with `use_fast_kernels`: dropout is off, which saves its masks
    and leaves 18 numbers per unit of h: fp32 72 bytes, 16-bit weights 36. Autocast: 40, for the fp32 inputs of the norms.
    Attention without a fused kernel keeps its probabilities too: a s numbers, under autocast in fp32 and in 16 bit. A
    Llama keeps 27 numbers when its MLP is 4h wide. LoRA adds 1 to 3 bytes, over 16-bit weights 17, since its matrices stay
    fp32.
    """
    shape = shape_of(model)
    if computes_in_16_bit:
        per_width, per_probability = 40, 6
    else:
        per_width, per_probability = 18 * weight_bytes(model), weight_bytes(model)
    total = shape.hidden_size * per_width
    if getattr(model.config, "_attn_implementation", None) == "eager":
        total += shape.heads * length * per_probability
    return shape.layers * total


def forward_bytes(model: nn.Module, *, computes_in_16_bit: bool) -> int:
    """Bytes that one layer holds at a time per token, without a backward pass; all prompts go through in one forward pass.

    Per unit of h: before and after GELU 4h each, and 2 of h: 10 numbers. Autocast: 24 bytes.
    """
    per_width = 24 if computes_in_16_bit else 10 * weight_bytes(model)
    return shape_of(model).hidden_size * per_width


def cache_bytes(model: nn.Module, *, computes_in_16_bit: bool) -> int:
    """Keys and values of one token: 2 * layers * kv heads * head width * bytes of a number."""
    shape = shape_of(model)
    number = 2 if computes_in_16_bit else weight_bytes(model)
    return 2 * shape.layers * shape.kv_heads * shape.head_width * number


def copied_bytes(model: nn.Module) -> int:
    """Autocast keeps a 16-bit copy of every fp32 weight matrix until the backward pass is over."""
    total = 0
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.dtype == torch.float32:
            total += 2 * parameter.numel()
    return total


def weight_bytes(model: nn.Module) -> int:
    """Bytes of one number in the model's matrices; with LoRA, in the frozen ones, which are larger, as they are unpacked."""
    matrices: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            matrices.append(parameter)
    largest = max(matrices, key=lambda p: p.numel())
    return largest.itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device.

    On a CPU, and on a Mac's GPU, what the machine has left, or the container or batch job that this process runs in.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min([psutil.virtual_memory().available, *left_in_control_groups()])


def left_in_control_groups() -> list[int]:
    """Bytes left under each memory limit of Linux's control groups, versions 1 and 2, that holds for this process."""
    if not OWN_GROUPS.is_file():  # another system
        return []
    left = []
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)  # as in 0::/user.slice/job
        if controllers == "":
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A limit of a group holds for those below it. A container may see the root alone.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (folder / names[0]).is_file():
                left += _left_in(folder, *names)
    return left


def _left_in(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Bytes left in one control group; [] without a limit. The kernel gives up the cache of files first."""
    most = (folder / limit).read_text(encoding="utf-8").strip()
    if most == "max":
        return []
    used = int((folder / usage).read_text(encoding="utf-8"))
    for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
        name, size = line.split()
        if name == cache:
            used -= int(size)
    return [max(0, int(most) - used)]
