"""The precision that multiplies a model's matrices faster on this machine: fp32, or bf16 with fp32 weights (autocast).

The instructions of a processor do not tell. Two cores of an Intel Xeon with AVX512-BF16 and without AMX reach 240 GFLOP/s in
fp32 and 147 in bf16, two of an AMD EPYC with the same instructions 160 and 415. So the products of the model's own sizes are
timed, for about half a second: forward and both of the backward pass, casts included.
"""

import copy
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")  # values of the key
MIN_GAIN = 1.2  # bf16 must be so much faster: it is less exact, and noise must not decide
TOO_SMALL = 2**20  # weights in matrices; below it other things than matrix products take the time
SIZES_TIMED = 3  # kinds of matrices that are timed, those with the most work
STEPS_TIMED = 6
SECONDS = 0.4  # of timing, at least two rounds
# Per device: the widest matrix that is timed, of which a wider one is a multiple, and the work of one product and its
# backward pass.
WIDEST = {"cpu": 2048, "cuda": 8192}
FLOP_AT_ONCE = {"cpu": 3e9, "cuda": 1e12}
LEARNS_NOTHING = 0.5  # share of entries that must move in a step


@dataclass(frozen=True)
class MatrixRates:
    """GFLOP/s of the same matrix products in fp32 and in bf16; on a CPU, of one core."""

    fp32: float
    bf16: float

    @property
    def faster(self) -> str:
        """ "bf16" if that is clearly faster, else "fp32"."""
        if self.bf16 >= MIN_GAIN * self.fp32:
            return "bf16"
        return "fp32"


def supports_bf16(device: torch.device) -> bool:
    """True if autocast to bf16 works on the device. On a CPU it always does, but may be slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu"


def weights_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's largest matrix; with LoRA, of the frozen weights. Packed ones do not count."""
    matrices = []
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            matrices.append(parameter)
    largest = max(matrices, key=lambda parameter: parameter.numel())
    return largest.dtype


def matrix_sizes(model: nn.Module) -> Counter[tuple[int, int]]:
    """(inputs, outputs) of the model's linear layers, each with the number of layers of that size."""
    sizes: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            sizes[module.in_features, module.out_features] += 1
        elif isinstance(module, Conv1D):  # GPT-2's linear layers
            inputs, outputs = module.weight.shape
            sizes[inputs, outputs] += 1
    return sizes


def is_tiny(model: nn.Module) -> bool:
    """True if the matrices are too small for their precision to matter."""
    weights = 0
    for (inputs, outputs), layers in matrix_sizes(model).items():
        weights += inputs * outputs * layers
    return weights < TOO_SMALL


def training_rates(model: nn.Module, *, tokens: int, device: torch.device) -> MatrixRates:
    """Time the products of the model's largest kinds of matrices with `tokens` rows, as a step of training makes them.

    A product and its two backward products take 6 * inputs * outputs * tokens floating-point operations. The global random
    state is not used.
    """
    sizes = matrix_sizes(model)
    work = {size: layers * size[0] * size[1] for size, layers in sizes.items()}
    busiest = sorted(work, key=work.__getitem__, reverse=True)[:SIZES_TIMED]
    problems = {size: _problem(size, tokens, device) for size in busiest}
    with one_thread():
        fastest = _fastest_seconds(problems, device)
    operations = 0.0
    seconds = {"fp32": 0.0, "bf16": 0.0}
    for size, (inputs, weights) in problems.items():
        operations += work[size]
        for precision in seconds:
            per_operation = fastest[size, precision] / (6 * len(inputs) * weights.numel())
            seconds[precision] += work[size] * per_operation
    return MatrixRates(
        fp32=operations / seconds["fp32"] / 1e9, bf16=operations / seconds["bf16"] / 1e9
    )


def _problem(size: tuple[int, int], tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random inputs (tokens, in) and weights (out, in), cut where the product would take long."""
    inputs, outputs = [min(width, WIDEST[device.type]) for width in size]
    most = int(FLOP_AT_ONCE[device.type] / (6 * inputs * outputs))
    tokens = max(1, min(tokens, most))
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((tokens, inputs), (outputs, inputs))
    tensors = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    return tensors[0].requires_grad_(), tensors[1].requires_grad_()


def _fastest_seconds(problems: dict, device: torch.device) -> dict[tuple, float]:
    """(size, precision) -> seconds of its fastest run. The first round warms up."""
    if device.type == "cuda":
        # The first product loads libraries, which can take longer than all the timing.
        for problem in problems.values():
            _seconds(*problem, "fp32", device)
            _seconds(*problem, "bf16", device)
    fastest: dict[tuple, float] = {}
    started = time.perf_counter()
    rounds = 0
    while True:
        for size, problem in problems.items():
            for precision in ("fp32", "bf16"):
                seconds = _seconds(*problem, precision, device)
                fastest[size, precision] = min(seconds, fastest.get((size, precision), seconds))
        rounds += 1
        elapsed = time.perf_counter() - started
        # A processor that emulates bf16 does not get a second round.
        if elapsed > 3 * SECONDS or (elapsed > SECONDS and rounds > 1):
            return fastest


def _seconds(inputs: Tensor, weights: Tensor, precision: str, device: torch.device) -> float:
    """Seconds of a product with its backward pass."""
    inputs.grad = weights.grad = None
    started = _clock(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = nn.functional.linear(inputs, weights)
    outputs.backward(outputs.detach())  # any gradient will do
    return _clock(device) - started


@contextmanager
def one_thread():
    """Within it, torch computes on one core. Several would wait for each other when other programs have one of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _clock(device: torch.device) -> float:
    """Seconds of a device; of a CPU those of this process, without what other programs take."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)  # it has done what was started on it
    return time.perf_counter()


# ---- answering ---------------------------------------------------------------------------------


def convert_for_answers(model: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """A frozen language model on the device, with weights in the precision that it is to answer in.

    precision: "fp32", "bf16" or "auto". One token at a time, most of the time goes to reading the weights, and bf16 has half
    the bytes: auto takes it on a GPU that has it, and on a CPU if a step of this very model is clearly faster.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r}: use one of {', '.join(PRECISIONS)}")
    model = model.to(device)
    if precision == "fp32":
        return model
    if precision == "auto" and (not supports_bf16(device) or is_tiny(model)):
        return model
    if precision == "bf16" or device.type == "cuda":
        return model.to(torch.bfloat16)
    in_bf16 = copy.deepcopy(model).to(torch.bfloat16)
    if MIN_GAIN * _seconds_of_a_step(in_bf16) <= _seconds_of_a_step(model):
        return in_bf16
    return model


@torch.no_grad()
def _seconds_of_a_step(model: nn.Module) -> float:
    """Seconds of the fastest forward pass of one token. The first of them warms up."""
    token = torch.zeros(1, 1, dtype=torch.long)
    seconds = []
    for _ in range(STEPS_TIMED):
        started = time.perf_counter()
        model(input_ids=token)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


# ---- bf16 weights ------------------------------------------------------------------------------


@torch.no_grad()
def share_that_moves(model: nn.Module, *, learning_rate: float) -> float | None:
    """Share of the trainable bf16 entries that one step of AdamW changes; None without such entries.

    A step moves an entry by about learning_rate. Neighbouring bf16 numbers are 2^-8 to 2^-7 of their size apart, so that
    an entry more than about 256 to 512 times the learning rate rounds back to what it was.
    """
    moved = total = 0
    for parameter in model.parameters():
        if parameter.dtype != torch.bfloat16 or not parameter.requires_grad:
            continue
        # Each row of a matrix that is a few thousand rows apart is enough of a sample.
        sample = parameter.detach().flatten()[:: max(1, parameter.numel() // 100_000)]
        stepped = (sample.float() - learning_rate).to(torch.bfloat16)
        moved += int((stepped != sample).sum()) * parameter.numel() / len(sample)
        total += parameter.numel()
    if not total:
        return None
    return moved / total


def bf16_weights_warning(model: nn.Module, *, learning_rate: float) -> str | None:
    """A warning where plain AdamW on bf16 weights loses most of its updates, or None."""
    share = share_that_moves(model, learning_rate=learning_rate)
    if share is None or share > LEARNS_NOTHING:
        return None
    return (
        f"dtype: bfloat16: at learning_rate {learning_rate:g} a step of AdamW changes {share:.0%} of the weights, the rest "
        "are rounded back to what they were: set dtype: float32 (precision: bf16 computes as fast), or use_peft: true"
    )
