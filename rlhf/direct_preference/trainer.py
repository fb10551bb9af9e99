"""The part that the trainers of DPO and KTO share: policy and reference, evaluation, and samples of the policy.

Implicit reward of an answer: beta (log pi(y) - log pi_ref(y)), summed over its tokens, EOS included. The reference is a
model of its own, a frozen copy of the policy, or with LoRA the policy without its adapter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn

from rlhf.algorithms.masking import masked_sum
from rlhf.completions.batches import decode_in_batches
from rlhf.completions.rollout import completion_texts, unpadded
from rlhf.completions.sample import uniform_numbers
from rlhf.data.chat import as_text, encode_prompt
from rlhf.data.encodings import EncodedRows
from rlhf.data.padding import left_pad
from rlhf.direct_preference.log_probs import (
    Answer,
    answer_batch,
    check_fused_layer,
    summed_log_probs,
)
from rlhf.errors import UserError
from rlhf.models.actor_critic import frozen_copy, reference_log_probs
from rlhf.models.one_trunk import adapter
from rlhf.models.parts import base_of, disable_dropout, stop_token_ids
from rlhf.runs.checkpoints import check_is_measured
from rlhf.runs.progress import publish_evaluation, sample_table
from rlhf.runs.sharding import is_plain
from rlhf.runs.trl_trainer import TrlTrainer

# Metric of the policy's own answers -> the column of the samples whose mean it is.
SAMPLED = {"completion_length": "completion_length", "eos_rate": "ended", "kl": "kl"}


@dataclass(frozen=True)
class Sampling:
    """Prompts that the policy answers at each evaluation, and the most tokens of an answer."""

    prompts: list[dict]  # rows with a "prompt"
    max_completion_length: int


def make_reference(model: nn.Module, ref_model: nn.Module | None, args) -> nn.Module | None:
    """The reference of a run, or None where the policy without its adapter is it, or where it runs before the training.

    ref_model: the model that the user named, or None.
    """
    if ref_model is None and (hasattr(model, "peft_config") or args.precompute_ref_log_probs):
        return None
    if ref_model is None:
        return frozen_copy(model)
    return disable_dropout(ref_model).eval().requires_grad_(False)


class DirectTrainer(TrlTrainer):
    """Mixin for trl's DPOTrainer and KTOTrainer, named first.

    A subclass says what the answers of a row are (`answers_of`) and what an evaluation measures (`measure`).
    """

    eval_references: list[list[float]] | None = None  # log-probs, see `references_of_eval_rows`
    held_out_rewards: list[list[float]] = []  # implicit ones, of the last evaluation
    samples: list[dict] = []  # of the last evaluation
    sampled: dict[str, float] = {}  # their means

    def __init__(
        self,
        *,
        model: nn.Module,
        ref_model: nn.Module | None,
        tokenizer,
        args,
        train_rows: EncodedRows,
        eval_rows: EncodedRows,
        sampling: Sampling,
        collator=None,
    ):
        """Model: LoRA or not. ref_model: as of `make_reference`. Rows: encoded. collator: None: trl's own."""
        disable_dropout(model)
        self.tokenizer, self.sampling = tokenizer, sampling
        self.eval_rows = eval_rows
        self.has_reference = ref_model is not None or hasattr(model, "peft_config")
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=collator,
            train_dataset=self.dataset_of(train_rows),
            eval_dataset=self.dataset_of(eval_rows),
            processing_class=tokenizer,
        )
        if not is_plain(self.accelerator):
            raise UserError(
                "DPO and KTO do not run under DeepSpeed or FSDP yet, where a process holds slices of the weights: start "
                "with ddp.yaml, and with use_peft: true if the memory is short"
            )
        if "ref" in getattr(self.model, "peft_config", {}):
            # trl's copy of the LoRA matrices. The policy without its own is the reference.
            self.model.delete_adapter("ref")
        # KTO's trainer would add the loss of the routers where the config of a model has a coefficient.
        self.aux_loss_enabled = False
        self.check_fused_layers(self.answers_of(train_rows[0])[0])
        zeros = [[0.0] * self.count_of(row) for row in eval_rows]
        names = [*self.measure(zeros), *self.sampled_names()]
        check_is_measured(args.metric_for_best_model, [f"eval_{name}" for name in names])

    def check_fused_layers(self, answer: Answer) -> None:
        """`check_fused_layer` of the policy, and of a reference of another architecture."""
        check_fused_layer(self.model, answer, self.tokenizer.pad_token_id)
        if self.ref_model is None or type(self.ref_model) is type(base_of(self.model)):
            return
        # accelerate has wrapped its forward pass already.
        with self.accelerator.autocast():
            check_fused_layer(self.ref_model, answer, self.tokenizer.pad_token_id)

    # ---- for the subclasses --------------------------------------------------------------------------------------

    def dataset_of(self, rows: EncodedRows) -> Dataset:
        """Encoded rows as trl wants them."""
        raise NotImplementedError

    def answers_of(self, row: dict) -> list[Answer]:
        """The answers of an encoded row."""
        raise NotImplementedError

    def measure(self, rewards: list[list[float]]) -> dict[str, float]:
        """The numbers of an evaluation. rewards: implicit ones of each answer of each evaluation row."""
        raise NotImplementedError

    # ---- hooks of trl --------------------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        """The rows as they are: they are encoded already, by what SFT, PPO and the chat use."""
        return dataset

    # ---- log-probs -----------------------------------------------------------------------------------------------

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """A context with the reference. Before the training it may be the policy itself (precompute_ref_log_probs)."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model)
        if not hasattr(model, "peft_config"):
            yield model
            return
        with adapter(model, None):
            yield model

    @torch.no_grad()
    def reference_log_probs(self, batch: dict[str, Tensor]) -> Tensor:
        """`summed_log_probs` (N,) of a batch under the reference."""
        with self.reference() as model, self.accelerator.autocast():
            return summed_log_probs(model, batch)

    @torch.no_grad()
    def policy_log_probs(self, batch: dict[str, Tensor]) -> Tensor:
        """`summed_log_probs` (N,) of a batch under the policy, without gradients."""
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            return summed_log_probs(model, batch)

    def log_probs_of(self, rows: Sequence[dict], log_probs) -> list[list[float]]:
        """Log-probs of the answers of all rows, split over processes.

        log_probs: `reference_log_probs` or `policy_log_probs`.
        """
        counts = [self.count_of(row) for row in rows]
        # Flat, so that rows with many answers do not make batches larger.
        answers = chain.from_iterable(map(self.answers_of, rows))
        rank, world = self.args.process_index, self.args.world_size
        # One batch at a time: the rows are mapped from a file.
        mine, values = islice(answers, rank, None, world), []
        while part := list(islice(mine, self.args.per_device_eval_batch_size)):
            batch = answer_batch(part, self.tokenizer.pad_token_id, self.args.device)
            values += log_probs(batch).tolist()
        in_turn = iter(in_order(values, sum(counts), world))
        return [list(islice(in_turn, count)) for count in counts]

    def count_of(self, row: dict) -> int:
        """The number of answers of a row."""
        return len(self.answers_of(row))

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def rewards(self) -> list[list[float]]:
        """Implicit rewards of the answers of the evaluation rows."""
        log_probs = self.log_probs_of(self.eval_rows, self.policy_log_probs)
        references = self.references_of_eval_rows()
        rewards = []
        for ours, theirs in zip(log_probs, references, strict=True):
            pairs = zip(ours, theirs, strict=True)
            rewards.append([self.beta * (ours_now - then) for ours_now, then in pairs])
        return rewards

    def references_of_eval_rows(self) -> list[list[float]]:
        """Log-probs of the evaluation answers under the reference, which does not move: computed once."""
        if self.eval_references is None:
            self.eval_references = self.log_probs_of(self.eval_rows, self.reference_log_probs)
        return self.eval_references

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log and return what the subclass measures, and the length and KL of the policy's own answers."""
        self.model.eval()  # trl's log tells training and evaluation apart by it
        samples = self.sample()
        self.samples, self.sampled = samples, sample_metrics(samples)
        self.held_out_rewards = self.rewards()
        metrics = self.measure(self.held_out_rewards) | self.sampled
        return publish_evaluation(self, metrics, metric_key_prefix, samples)

    def sampled_names(self) -> list[str]:
        """The metrics of the policy's own answers that an evaluation gives."""
        names = list(SAMPLED) if self.sampling.prompts else []
        if not self.has_reference:
            names = [name for name in names if name != "kl"]
        return names

    def table_of_samples(self) -> str:
        """The first answers of the last evaluation, for the terminal."""
        columns = ["prompt", "completion", "completion_length"]
        if self.has_reference:
            columns.append("kl")
        return sample_table(self.samples, columns=columns, limit=8)

    @torch.no_grad()
    def sample(self) -> list[dict]:
        """The policy's answers to the prompts of `sampling`, split over processes.

        Each has prompt, completion, completion_length in tokens, ended, and kl: the log-ratio to the reference, an unbiased
        estimate of the KL in nats per completion. Without kl where no reference is kept.
        """
        rank, world = self.args.process_index, self.args.world_size
        prompts = self.sampling.prompts
        length = self.sampling.max_completion_length
        # The same numbers at each evaluation, so that two of them differ by the policy alone.
        uniforms = uniform_numbers(len(prompts), length, seed=self.args.seed, stream=0)
        samples = []
        if prompts[rank::world]:
            samples = self._sample(prompts[rank::world], uniforms[rank::world])
        return in_order(samples, len(prompts), world)

    def _sample(self, prompts: list[dict], uniforms: Tensor) -> list[dict]:
        model = self.accelerator.unwrap_model(self.model)
        # As in training: the trunk is called without the wrapper that has it.
        with self.accelerator.autocast():
            batch, samples = decode_prompts(model, self.tokenizer, prompts, uniforms, self.args)
            kl = self._log_ratios(model, batch)
        if kl is not None:
            for sample, value in zip(samples, kl.tolist(), strict=True):
                sample["kl"] = value
        return samples

    def _log_ratios(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor | None:
        """log pi - log pi_ref (B,) of sampled completions; None where no reference is kept."""
        if not self.has_reference:
            return None
        ratios = []
        for start in range(0, len(batch["mask"]), self.args.per_device_eval_batch_size):
            part = {
                name: tensor[start : start + self.args.per_device_eval_batch_size]
                for name, tensor in batch.items()
            }
            log_probs = reference_log_probs(model, part, temperature=1.0)
            with self.reference() as reference:
                log_probs = log_probs - reference_log_probs(reference, part, temperature=1.0)
            ratios.append(masked_sum(log_probs, part["mask"], 1))
        return torch.cat(ratios)


def decode_prompts(
    model: nn.Module, tokenizer, prompts: list[dict], uniforms: Tensor, args
) -> tuple[dict[str, Tensor], list[dict]]:
    """Answer each prompt once, per_device_eval_batch_size at a time.

    uniforms (B, max_completion_length): one number for each token. args: of the Trainer.
    Returns prompt and completion ids with their masks, as `reference_log_probs` reads them, and for each prompt a sample
    {prompt, completion, completion_length, ended}.
    """
    ids = [encode_prompt(tokenizer, row["prompt"]) for row in prompts]
    prompt_ids, prompt_mask = left_pad(ids, tokenizer.pad_token_id)
    batch = {
        "prompt_ids": prompt_ids.to(args.device),
        "prompt_mask": prompt_mask.to(args.device),
    }
    sampled = decode_in_batches(
        model,
        *batch.values(),
        batch_size=args.per_device_eval_batch_size,
        stop_token_ids=stop_token_ids(model, tokenizer),
        max_completion_length=uniforms.shape[1],
        temperature=1.0,
        uniforms=uniforms,
    )
    batch |= {"completion_ids": sampled.ids, "mask": sampled.mask}
    texts = completion_texts(tokenizer, unpadded(sampled.ids, sampled.mask), sampled.ended)
    samples = []
    for i, text in enumerate(texts):
        sample = {
            "prompt": as_text(prompts[i]["prompt"]),
            "completion": text,
            "completion_length": int(sampled.mask[i].sum()),
            "ended": bool(sampled.ended[i]),
        }
        samples.append(sample)
    return batch, samples


def sample_metrics(samples: list[dict]) -> dict[str, float]:
    """Means over the policy's answers: length in tokens, share that ends by itself, and KL in nats per answer."""
    if not samples:
        return {}
    metrics = {}
    for name, column in SAMPLED.items():
        if column in samples[0]:
            metrics[name] = sum(float(sample[column]) for sample in samples) / len(samples)
    return metrics


def in_order(values: list, count: int, world: int) -> list:
    """All processes' values in the order of the items: item i is of process i % world, as its value i // world."""
    if world == 1:
        return values
    by_process = gather_object([values])
    return [by_process[i % world][i // world] for i in range(count)]
