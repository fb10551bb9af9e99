"""Export a trained encoder to ONNX, and run the result: a file whose logits differ from the model's is not kept.

    rlhf export runs/ner --format onnx --output runs/ner-onnx

The folder holds model.onnx, config.json and the tokenizer. Batch and length may be of any size that the model reads.
"""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.models.load import load_encoder, load_tokenizer
from rlhf.models.parts import context_length, freeze
from rlhf.runs.record import model_kind
from rlhf.task_table import TASKS

FORMATS = ("onnx",)
MODEL = "model.onnx"
PACKAGES = "onnx, onnxscript and onnxruntime"
EXTERNAL = ".data"  # the end of the name of the file with weights of more than 2 GB
REWARD = "reward"
REWARD_HEAD = "AutoModelForSequenceClassification"
CHOICE_HEAD = "AutoModelForMultipleChoice"  # whose inputs have a dimension more
BATCHES = (1, 3, 8)  # that the result is tried with
LONGEST = 512  # tokens of a try
LARGEST_BATCH = 65_536
TOLERANCE = 1e-3  # of the largest logit; rounding alone gives about 1e-6


@dataclass(frozen=True)
class Exported:
    """A folder with an exported model.

    difference: the largest difference of a logit from the model's, as a share of the largest logit.
    tried: batches that were compared. size: of model.onnx in bytes, with its weights.
    """

    folder: Path
    inputs: list[str]
    outputs: list[str]
    difference: float
    tried: int
    size: int


def export_onnx(run: str | Path, target: str | Path) -> Exported:
    """Export the encoder or reward model of a run into a new folder.

    UserError: packages that are missing, a run of another kind, a folder that is not empty, an architecture that cannot be
    exported, and a result that computes something else than the model.
    """
    check_packages()
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: give another folder")
    model, tokenizer, dimensions = load_for_export(run)
    wrapped = Logits(model, input_names(model, tokenizer))
    target.mkdir(parents=True, exist_ok=True)
    path = target / MODEL
    try:
        outputs = write_onnx(wrapped, path, dimensions, longest_input(model))
        difference, tried = compare(wrapped, path, dimensions, longest_input(model))
        if not difference <= TOLERANCE:
            raise UserError(
                f"{run}: the logits of the exported model differ by {difference:.1e} of the largest one, so it is not kept: "
                "use the model as it is"
            )
    except BaseException:
        for name in (MODEL, MODEL + EXTERNAL):
            (target / name).unlink(missing_ok=True)
        raise
    model.config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    # The weights of a large model are in a file of their own.
    files = [file for file in (path, target / (MODEL + EXTERNAL)) if file.exists()]
    size = sum(file.stat().st_size for file in files)
    return Exported(target, list(wrapped.names), outputs, difference, tried, size)


def check_packages() -> None:
    """UserError where the optional packages are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the export needs {PACKAGES} ({error}): pip install 'rlhf[onnx]', or install the three"
        ) from error


def load_for_export(run: str | Path):
    """(model, tokenizer, number of dimensions of its inputs) of a run of an encoder task or a reward model."""
    kind = model_kind(run)
    if kind not in (*TASKS, REWARD):
        names = ", ".join(TASKS)
        raise UserError(
            f"{run}: only encoders and reward models can be exported to ONNX: give a run of {names} or {REWARD}"
        )
    head = REWARD_HEAD if kind == REWARD else TASKS[kind].head
    # No dropout: two passes must agree.
    model = freeze(load_encoder(str(run), head))
    # The plain form of attention, which the exporter knows for every architecture.
    model.set_attn_implementation("eager")
    return model, load_tokenizer(str(run)), 3 if head == CHOICE_HEAD else 2


def input_names(model, tokenizer) -> list[str]:
    """The inputs of the exported model: those of the tokenizer that the model reads."""
    known = inspect.signature(model.forward).parameters
    return [name for name in tokenizer.model_input_names if name in known]


def longest_input(model) -> int:
    """Tokens of the longest sequence."""
    return min(context_length(model), 2**20)


class Logits(nn.Module):
    """A model as a function of tensors by position. names: of its inputs. Returns its logits in their order."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self.model(**dict(zip(self.names, values)), return_dict=True)
        return tuple(results[name] for name in logit_names(results))


def logit_names(results) -> list[str]:
    """`logits`, or `start_logits` and `end_logits`."""
    return [name for name in results if name.endswith("logits")]


def write_onnx(wrapped: Logits, path: Path, dimensions: int, longest: int) -> list[str]:
    """Write model.onnx with free sizes of batch and length. Returns the names of its outputs."""
    values = example(wrapped, (2, 3, 7) if dimensions == 3 else (2, 7), padding=True)
    with torch.inference_mode():
        outputs = logit_names(wrapped.model(**dict(zip(wrapped.names, values)), return_dict=True))
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    length = torch.export.Dim("length", min=2, max=longest)
    sizes = {0: batch, dimensions - 1: length}
    if dimensions == 3:
        sizes[1] = torch.export.Dim("choices", min=2, max=LARGEST_BATCH)
    # All inputs have the same sizes, and the wrapped model takes them as *values.
    shapes = (tuple(dict(sizes) for _ in values),)
    try:
        with quiet():
            torch.onnx.export(
                wrapped,
                values,
                str(path),
                input_names=list(wrapped.names),
                output_names=outputs,
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=weight_bytes(wrapped) > 1.9e9,
                verbose=False,
            )
    except Exception as error:
        kind = wrapped.model.config.model_type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"models of {kind} cannot be exported to ONNX: {lines[0][:200]}") from error
    return outputs


def weight_bytes(model: nn.Module) -> int:
    """Size of all weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what the exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    nothing = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nothing):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---- the comparison ---------------------------------------------------------------------------------------------------


def compare(wrapped: Logits, path: Path, dimensions: int, longest: int) -> tuple[float, int]:
    """(largest difference as a share of the largest logit, batches) of the file and the model.

    Batches of several sizes and lengths, each with and without padding, which must not change anything.
    """
    import onnxruntime

    # On the CPU, as the model: another device rounds in another way.
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst, tried = 0.0, 0
    for batch in BATCHES:
        for length in (2, min(33, longest), min(longest, LONGEST)):
            shape = (batch, 4, length) if dimensions == 3 else (batch, length)
            for padding in (False, True):
                worst = max(worst, difference(wrapped, session, example(wrapped, shape, padding)))
                tried += 1
    return worst, tried


def difference(wrapped: Logits, session, values: tuple[torch.Tensor, ...]) -> float:
    """The largest difference of a logit of real tokens, as a share of the largest logit."""
    with torch.inference_mode():
        wanted = wrapped(*values)
    inputs = {name: value.numpy() for name, value in zip(wrapped.names, values)}
    worst = 0.0
    for ours, theirs in zip(wanted, session.run(None, inputs)):
        theirs = torch.from_numpy(theirs)
        # A size of the example that was written into the file.
        if ours.shape != theirs.shape:
            return float("inf")
        gap = (ours - theirs).abs()
        # Nobody reads the logits of padding.
        mask = values[wrapped.names.index("attention_mask")].bool()
        if ours.shape[: mask.dim()] == mask.shape:
            gap, ours = gap[mask], ours[mask]
        scale = max(float(ours.abs().max()), 1e-6)
        # max() would pass over NaN.
        largest = float(gap.max()) / scale
        worst = largest if largest != largest else max(worst, largest)
    return worst


def example(wrapped: Logits, shape: tuple[int, ...], padding: bool) -> tuple[torch.Tensor, ...]:
    """Inputs with random tokens. padding: the last row is half padding, at the end."""
    config = wrapped.model.config.get_text_config()
    generator = torch.Generator().manual_seed(sum(shape))
    ids = torch.randint(1, config.vocab_size, shape, generator=generator)
    mask = torch.ones_like(ids)
    if padding and shape[-1] > 2:
        half = shape[-1] // 2
        mask[-1, ..., half:] = 0
        ids[-1, ..., half:] = config.pad_token_id or 0
    if config.pad_token_id is not None:
        # A pad token among the others would be taken for padding.
        other = 1 if config.pad_token_id != 1 else 2
        ids[(ids == config.pad_token_id) & mask.bool()] = other
    types = torch.zeros_like(ids)
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return tuple(known[name] for name in wrapped.names)
