"""Steps whose loss or gradient is not finite, in every trainer: skipped, counted, and said with the rows of the data.

A skipped step changes no weight and no moment of the optimizer. It counts as a step, so that the learning rate of every
later step is that of the plan. Ten in a row end the run. Under fp16 the loss is scaled, and the scaler itself skips the
steps whose gradient is too large for fp16 and lowers the scale. Those count only once the scale is 1.

The number of a row travels with its batch, as a list under ROW_NUMBERS, through the workers of the data loader. It is taken
out before the model sees the batch.
"""

import math
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rlhf.errors import UserError
from rlhf.runs.manifest import flaw, read_manifest
from rlhf.runs.row_numbers import ROW_NUMBERS, NumberedCollator, NumberedRows, numbers_text
from rlhf.runs.verified_save import checkpoints_of

SKIPPED_AT_MOST = 10  # steps in a row
TEXT_LENGTH = 60  # characters of a row in a message
TENSORS_SHOWN = 5  # names of tensors in a message


class NonFiniteSteps(TrainerCallback, ExportableState):
    """Counts the optimizer steps that were skipped because their loss or gradient was not finite.

    As a callback it keeps `in_a_row` in the checkpoint, so that a resumed run stops where the uninterrupted one does.
    """

    def __init__(self, limit: int = SKIPPED_AT_MOST, output_dir: str = ""):
        self.limit = limit
        self.output_dir = output_dir
        self.in_a_row = 0
        self.since_log = 0

    def state(self) -> dict:
        return {"args": {}, "attributes": {"in_a_row": self.in_a_row}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.output_dir = args.output_dir  # not of the checkpoint, which may have been moved
        stored = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(stored, dict):
            self.in_a_row = stored["attributes"]["in_a_row"]

    def count(self, skipped: bool, details: str = "") -> None:
        """Notes one step. UserError at the step that makes it `limit` skipped ones in a row.

        skipped: must be the same on all processes, or some would step and others not.
        details: of this step, for the error.
        """
        if not skipped:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.since_log += 1
        if self.in_a_row >= self.limit:
            last = f" The last: {details}." if details else ""
            raise UserError(
                f"{self.in_a_row} updates in a row had a loss or gradient that is not finite; none was applied.{last} Look "
                "at these rows and for extreme scores in samples.jsonl, lower learning_rate or max_grad_norm, train in "
                f"float32 or bf16, then {how_to_go_on(self.output_dir)}"
            )

    def take(self) -> int:
        """Skipped steps since the last call, the metric `nonfinite_steps`."""
        steps = self.since_log
        self.since_log = 0
        return steps


class NonFiniteGuard:
    """The part of `RunTrainer` that skips steps which are not finite, and refuses weights that are not.

    step_rows, step_losses: of the step under way, for each micro-batch of this process its row numbers and its loss.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(NonFiniteSteps(output_dir=self.args.output_dir))
        self.step_rows: list[list[int]] = []
        self.step_losses: list[Tensor] = []
        self.is_checked = False  # `keep_step` was called for the step under way

    @property
    def nonfinite(self) -> NonFiniteSteps:
        """The counter among the callbacks: restore_callback_states_from_checkpoint replaces it by another."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, NonFiniteSteps):
                return callback
        raise LookupError("NonFiniteSteps was removed from the callbacks")

    def train(self, *args, **kwargs):
        """As the Trainer's. UserError where a weight is not finite, before the first step or after the last one."""
        self.check_weights("the model that training starts from", "start from another checkpoint")
        result = super().train(*args, **kwargs)
        self.check_weights(
            "the trained model, which is not saved,",
            f"lower learning_rate, train in float32 or bf16, and {how_to_go_on(self.args.output_dir)}",
        )
        return result

    def check_weights(self, model: str, remedy: str) -> None:
        """UserError on all processes if a weight of any is not finite."""
        if not self.has_nonfinite_weights():
            return
        names = nonfinite_tensors(self.model)
        shown = ", ".join(names[:TENSORS_SHOWN]) or "on another process"
        raise UserError(
            f"{model} has weights that are not finite in {len(names)} tensors ({shown}): {remedy}"
        )

    def has_nonfinite_weights(self) -> bool:
        """True on all processes if a weight of any is not finite."""
        return self._is_true_anywhere(bool(nonfinite_tensors(self.model)))

    def _is_true_anywhere(self, value: bool) -> bool:
        if self.args.world_size == 1:
            return value
        flag = torch.tensor([float(value)], device=self.args.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    # ---- the row numbers of a batch ----

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, **options
    ):
        """As the Trainer's, but batches for training bring the numbers of their rows."""
        arguments = {"batch_size": batch_size, "is_training": is_training, **options}
        if not is_training or isinstance(dataset, IterableDataset):
            return super()._get_dataloader(dataset, description, sampler_fn=sampler_fn, **arguments)
        own_collator, removes = self.data_collator, self.args.remove_unused_columns
        collator = own_collator
        if hasattr(dataset, "remove_columns"):  # a datasets.Dataset
            dataset = self._remove_unused_columns(dataset, description=description)
        else:
            collator = self._get_collator_with_removed_columns(own_collator, description)

        def sampler_of_rows(numbered):
            return sampler_fn(dataset)

        sampler = None if sampler_fn is None else sampler_of_rows
        self.data_collator = NumberedCollator(collator)
        self.args.remove_unused_columns = False  # it was done above
        try:
            return super()._get_dataloader(
                NumberedRows(dataset), description, sampler_fn=sampler, **arguments
            )
        finally:
            self.data_collator, self.args.remove_unused_columns = own_collator, removes

    def get_batch_samples(self, *args, **kwargs):
        """The batches of the next step, without the numbers of their rows, which are kept."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.step_losses = []
        self.step_rows = []
        self.is_checked = False
        for batch in batches:
            numbers = []
            if isinstance(batch, MutableMapping):
                numbers = batch.pop(ROW_NUMBERS, [])
            self.step_rows.append(numbers)
        return batches, count

    # ---- each step ----

    def training_step(self, *args, **kwargs) -> Tensor:
        """Keep the loss, and hide one that is not finite: one NaN would poison the Trainer's running mean."""
        loss = super().training_step(*args, **kwargs)
        self.step_losses.append(loss)
        return loss.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _get_grad_norm(self, model, grad_norm=None):
        """As the Trainer's, which asks after clipping and before the optimizer's step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not self.is_checked:
            self.keep_step([norm])
        return norm

    def keep_step(self, norms: Sequence[Tensor | float | None]) -> bool:
        """True if the loss and the gradient of this step are finite on all processes. Otherwise the step is skipped.

        Without gradients the optimizer leaves every weight and moment alone. DeepSpeed has stepped by now, or has skipped
        the step itself: there it is only counted.

        norms: of the whole gradient, or of its parts
        """
        self.is_checked = True
        bad_loss, bad_gradient = self._not_finite(norms)
        if not bad_loss and not bad_gradient:
            self.nonfinite.count(False)
            return True
        self.optimizer.zero_grad(set_to_none=True)
        if not bad_loss and self._is_scaled_down():
            return False
        details = self._describe_step(bad_loss)
        if self.nonfinite.in_a_row + 1 >= self.nonfinite.limit:
            names = nonfinite_tensors(self.model)
            if names:
                details += f"; weights that are not finite: {', '.join(names[:TENSORS_SHOWN])}"
        if self.is_world_process_zero():
            from tqdm import tqdm

            tqdm.write(f"step {self.state.global_step + 1} skipped: {details}")
        self.nonfinite.count(True, details)
        return False

    def _not_finite(self, norms: Sequence[Tensor | float | None]) -> tuple[bool, bool]:
        """Two flags: a loss, or the gradient, is not finite on any process. Here a step waits for the GPU, once."""
        device = self.args.device
        zero = torch.zeros((), device=device)
        losses = [zero] + [loss.to(device, torch.float32) for loss in self.step_losses]
        values = [zero]
        for norm in norms:
            if norm is not None:
                whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
                values.append(torch.as_tensor(whole, dtype=torch.float32, device=device))
        is_bad = torch.stack(
            [~torch.stack(losses).isfinite().all(), ~torch.stack(values).isfinite().all()]
        )
        counts = is_bad.float()
        # The gradient is the same on all processes, and the losses are not.
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        bad_loss, bad_gradient = counts.tolist()
        return bad_loss > 0, bad_gradient > 0

    def _is_scaled_down(self) -> bool:
        """True if the scaler of fp16 can still lower its scale."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def _describe_step(self, bad_loss: bool) -> str:
        """A description: what is not finite, and the rows of the step on all processes."""
        rows_of_batches = [list(map(int, rows)) for rows in self.step_rows]
        flags = [bool(loss.isfinite()) for loss in self.step_losses]
        shares = [(rows_of_batches, flags)]
        if self.args.world_size > 1:
            shares = [None] * self.args.world_size
            dist.all_gather_object(shares, (rows_of_batches, flags))
        suspects, others = [], []
        for rows_of_batches, finite in shares:
            for rows, is_finite in zip(rows_of_batches, finite):
                # Where all losses are finite, each row may have given the gradient.
                blameless = is_finite and bad_loss
                (others if blameless else suspects).extend(rows)
        what = "the loss" if bad_loss else "the gradient"
        if not suspects:
            return f"{what} is not finite"
        text = f"{what} of training rows {numbers_text(suspects)} is not finite"
        if others:
            text += f" (the step's other rows: {numbers_text(others)})"
        first = self.row_text(suspects[0])
        if first:
            text += f"; row {suspects[0]} begins {first!r}"
        return text

    def row_text(self, number: int) -> str:
        """The beginning of a training row as text, to find it in the data; "" where there is no tokenizer."""
        tokenizer = getattr(self, "tokenizer", None) or self.processing_class
        if tokenizer is None or self.train_dataset is None:
            return ""
        ids = self.train_dataset[number]["input_ids"]
        if len(ids) and isinstance(ids[0], list):  # a ranking: the first completion
            ids = ids[0]
        return tokenizer.decode(ids[:TEXT_LENGTH], skip_special_tokens=True)[:TEXT_LENGTH]

    def _determine_best_metric(self, metrics: dict, trial) -> bool:
        """As the Trainer's, but an evaluation is never the best if its loss or the metric that picks is not finite."""
        picks = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        for name in ("eval_loss", f"eval_{picks}"):
            if not math.isfinite(metrics.get(name, 0.0)):
                return False
        return super()._determine_best_metric(metrics, trial)

    def log_state(self) -> dict:
        """The sums of `runs.log_state`, and the skipped steps that no log has told yet."""
        return super().log_state() | {"nonfinite_steps": self.nonfinite.since_log}

    def restore_log_state(self, state: dict) -> None:
        """Go on from the sums of a checkpoint."""
        super().restore_log_state(state)
        self.nonfinite.since_log = state.get("nonfinite_steps", 0)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Add the number of skipped steps to the log of training, where there are any."""
        if "loss" in logs and self.nonfinite.since_log:
            logs["nonfinite_steps"] = self.nonfinite.take()
        super().log(logs, *args, **kwargs)


# ---- weights -----------------------------------------------------------------------------------


def nonfinite_tensors(model: nn.Module) -> list[str]:
    """The names of the parameters that hold a number that is not finite; of sliced ones this process's slice counts."""
    names = []
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if hasattr(tensor, "to_local"):  # FSDP2
            tensor = tensor.to_local()
        if tensor.is_floating_point() and has_nonfinite(tensor):
            names.append(name)
    return names


def has_nonfinite(tensor: Tensor) -> bool:
    """True if a number of a tensor is not finite."""
    # The sum takes a tenth of the time. Finite numbers can have an infinite one, but never the other way round.
    return not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all())


def how_to_go_on(output_dir: str) -> str:
    """The remedy: from the newest checkpoint with finite weights, or from the start."""
    checkpoint = last_finite_checkpoint(output_dir)
    if checkpoint is None:
        return "start again (there is no checkpoint with finite weights)"
    return f"continue from the last checkpoint with finite weights: --resume_from_checkpoint {checkpoint}"


def last_finite_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint-N of the folder that is whole, with finite weights only; None where there is none."""
    for checkpoint in reversed(checkpoints_of(Path(output_dir))):
        if read_manifest(checkpoint) and flaw(checkpoint):
            continue
        if all(map(is_finite_file, checkpoint.rglob("*.safetensors"))):
            return str(checkpoint)
    return None


def is_finite_file(path: Path) -> bool:
    """True if all tensors of a safetensors file can be read and are finite."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a file cannot be iterated
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and has_nonfinite(tensor):
                    return False
    except Exception:  # torn by a kill
        return False
    return True
