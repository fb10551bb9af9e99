"""Rollouts: which prompts a rollout has, how all processes make it together, and the loader that hands it out.

Nothing of a rollout is ever saved: its prompts and random numbers are functions of the seed and of its index, so that a
resumed run makes the same ones.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain

import torch
from accelerate.utils import gather
from torch import Tensor, nn

from rlhf.algorithms import ALGORITHMS
from rlhf.algorithms.kl import adapt_kl_coef
from rlhf.completions.prompts import fitting_prompts
from rlhf.completions.rollout import (
    CollectSettings,
    Prompts,
    Rollout,
    collect,
    estimate,
    statistics,
)
from rlhf.completions.sample import uniform_numbers
from rlhf.completions.score import column_names
from rlhf.data.padding import right_pad
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, reference_log_probs
from rlhf.models.one_trunk import adapter
from rlhf.models.parts import context_length, stop_token_ids
from rlhf.policy_gradient import sharding
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.roles import Roles
from rlhf.runs.signals import abandonable

EVALUATION_STREAM = 2**40  # of random numbers: no run has so many rollouts


def encode_prompts(
    rows: Sequence[dict], tokenizer, args: PolicyGradientConfig, *, limit: int, name: str
) -> Prompts:
    """Encode the prompts. Those longer than `limit` tokens are dropped or cut, and counted. name: for messages."""
    prompts, long = fitting_prompts(
        rows, tokenizer, limit=limit, long_prompts=args.long_prompts, name=name
    )
    if long and args.process_index == 0:
        done = {"drop": "dropped", "cut": "cut to their end"}[args.long_prompts]
        print(
            f"{long} of {len(rows)} {name} prompts are longer than {limit} tokens and were {done}"
        )
    if not prompts.rows:
        raise UserError(
            f"every {name} prompt is longer than {limit} tokens (max_prompt_length "
            f"{args.max_prompt_length}, context minus completion): raise max_prompt_length or set long_prompts: cut"
        )
    return prompts


def check_texts(
    texts: list[list[int]] | None, args: PolicyGradientConfig, *, context: int
) -> list[list[int]] | None:
    """The plain texts of PPO-ptx, or None without it. Refuses texts with nothing to predict, or longer than the context."""
    if args.ptx_coef and not texts:
        raise UserError(
            f"ptx_coef={args.ptx_coef} needs plain text: set ptx_dataset_name, or ptx_coef to 0"
        )
    for i, text in enumerate(texts or []):
        if not 2 <= len(text) <= context:
            raise UserError(
                f"plain text {i} has {len(text)} tokens: between 2 (one to read, one to predict) and the "
                f"context's {context} are needed; cut long texts"
            )
    return texts if args.ptx_coef else None


@lru_cache(maxsize=8)
def permutation(size: int, *, seed: int, stream: int) -> Tensor:
    """A permutation that is the same on every process, whatever was drawn before."""
    generator = torch.Generator().manual_seed((seed * 999_983 + stream) % 2**63)
    return torch.randperm(size, generator=generator)


def choose_rows(total: int, count: int, *, start: int, seed: int) -> list[int]:
    """`count` indices from an endless stream of permutations of range(total), beginning at its position `start`."""
    chosen: list[int] = []
    while len(chosen) < count:
        index, offset = divmod(start + len(chosen), total)
        order = permutation(total, seed=seed, stream=index)
        chosen += order[offset : offset + count - len(chosen)].tolist()
    return chosen


class RolloutMaker:
    """Makes rollouts with the weights of the moment. All processes call its methods together.

    model: returns the unwrapped ActorCritic. `kl_coef` is of the next rollout: with kl_target it moves after each.
    """

    def __init__(
        self,
        roles: Roles,
        model: Callable[[], ActorCritic],
        tokenizer,
        args: PolicyGradientConfig,
        accelerator,
        *,
        rows: Sequence[dict],
        eval_rows: Sequence[dict] | None,
    ):
        self.roles, self.model, self.tokenizer = roles, model, tokenizer
        self.args, self.accelerator = args, accelerator
        limit = args.prompt_limit(context_length(roles.policy))
        encode = partial(encode_prompts, tokenizer=tokenizer, args=args, limit=limit)
        self.prompts = encode(rows, name="training")
        self.eval_prompts = None
        if eval_rows:
            self.eval_prompts = encode(eval_rows, name="evaluation")
        self.columns = column_names(chain(rows, eval_rows or []))
        self.stop_token_ids = tuple(stop_token_ids(roles.policy, tokenizer))
        self.kl_coef = args.kl_coef
        self.statistics: dict[str, float] = {}  # of the last rollout, for the log
        self.twin = None
        if sharding.has_sharded_weights(accelerator):
            self.twin = sharding.twin_of(model()).to(args.device)

    def make(self, index: int) -> Rollout:
        """Rollout `index` of the run, complete on every process. The KL controller moves after it."""
        args, started = self.args, time.time()
        size, group = args.rollout_batch_size, args.num_generations
        count = size // group
        chosen = choose_rows(len(self.prompts.rows), count, start=index * count, seed=args.seed)
        # A prompt's completions are next to each other.
        indices = torch.tensor(chosen).repeat_interleave(group).tolist()
        prompts = self.prompts.choose(indices)
        uniforms = uniform_numbers(size, args.max_completion_length, seed=args.seed, stream=index)
        with abandonable():  # by a signal
            completed = self.complete(prompts, uniforms)
        rollout = estimate(
            completed,
            ALGORITHMS[args.algorithm],
            kl_coef=self.kl_coef,
            gamma=args.gamma,
            gae_lambda=args.gae_lambda,
            num_generations=group,
        )
        # What the policy did before it learns from this rollout.
        self.statistics = statistics(rollout) | {
            "kl_coef": self.kl_coef,
            "episodes": (index + 1) * size,
            "rollout_seconds": time.time() - started,
        }
        if args.kl_target is not None:
            self.kl_coef = adapt_kl_coef(
                self.kl_coef,
                kl=self.statistics["kl"],
                target=args.kl_target,
                horizon=args.kl_horizon,
                episodes=size,
            )
        return rollout

    def make_for_evaluation(self) -> Rollout:
        """One completion of each evaluation prompt, with the same random numbers every time. Without advantages."""
        if self.eval_prompts is None:
            raise UserError(
                "there are no evaluation prompts: give eval_dataset_name or eval_fraction"
            )
        count, length = len(self.eval_prompts.ids), self.args.max_completion_length
        uniforms = uniform_numbers(count, length, seed=self.args.seed, stream=EVALUATION_STREAM)
        return self.complete(self.eval_prompts, uniforms)

    def complete(self, prompts: Prompts, uniforms: Tensor) -> Rollout:
        """Complete the prompts and score that. Each process does its share and gets all, in the order of the prompts.

        The number of prompts may be anything: shares are filled up with the last one, and its copies are cut off again.
        """
        args, count = self.args, len(prompts.ids)
        share = -(-count // args.world_size)  # rounded up
        first = args.process_index * share
        indices = [min(i, count - 1) for i in range(first, first + share)]
        settings = CollectSettings(
            temperature=args.temperature,
            max_completion_length=args.max_completion_length,
            batch_size=args.per_device_eval_batch_size,
            stop_token_ids=self.stop_token_ids,
            columns=self.columns,
            missing_eos_penalty=args.missing_eos_penalty,
            sampling_batch_size=args.per_device_sampling_batch_size,
        )
        own = prompts.choose(indices)  # this process's share
        with self.whole_model() as model, self.accelerator.autocast():
            model.eval()
            rollout = collect(
                model,
                partial(self.reference, model.policy),
                self.roles.rewards,
                self.tokenizer,
                own,
                uniforms[indices],
                settings,
            )
        if args.world_size == 1:  # it has all of them
            return rollout
        return self.gathered(rollout, count)

    def gathered(self, rollout: Rollout, count: int) -> Rollout:
        """The shares of all processes as one rollout of `count` completions."""
        whole = {}
        for name, tensor in rollout.tensors().items():
            if tensor.dim() == 2:
                padded = self.accelerator.pad_across_processes(
                    tensor, dim=1, pad_first=name.startswith("prompt")
                )
                tensor = padded.to(tensor.dtype)  # a padded mask comes back as int64
            whole[name] = gather(tensor)[:count]  # without the copies that filled the shares
        parts = {name: gather(part)[:count] for name, part in rollout.parts.items()}
        return replace(rollout, **whole, parts=parts)

    @contextmanager
    def whole_model(self) -> Iterator[ActorCritic]:
        """The ActorCritic with whole weights on this process. All processes enter together."""
        model = self.model()
        whole = nullcontext(model)
        if self.twin is not None:
            whole = sharding.whole_weights(self.twin, model)
        with whole as model:
            ref_model = self.roles.ref_model
            if ref_model is not None and sharding.uses_deepspeed(self.accelerator):
                # DeepSpeed's bf16 is the dtype of the weights; the reference must have the same.
                ref_model.to(next(model.parameters()).dtype)
            yield model

    def reference(self, policy: nn.Module, batch: dict) -> Tensor:
        """Log-probs of the reference: a model of its own, or the policy without its adapter."""
        temperature = self.args.temperature
        if self.roles.ref_model is not None:
            return reference_log_probs(self.roles.ref_model, batch, temperature=temperature)
        with adapter(policy, None):
            return reference_log_probs(policy, batch, temperature=temperature)


class RolloutLoader:
    """The data loader: makes a rollout, hands it out in this process's micro-batches, makes the next.

    Each optimiser step takes exactly `gradient_accumulation_steps` batches just before it runs, so a new rollout always
    sees the newest weights. The loader must therefore not go through `accelerator.prepare`, which reads one batch ahead.

    make(index): rollout `index`, the same on all processes, so that they agree on every mini-batch
    texts: plain texts as token ids, for PPO-ptx: `ptx_per_episode` of them with each completion
    A batch is a dict of row tensors with
        num_tokens, num_completions: of its whole mini-batch (num_text_tokens: of its plain text, to be predicted)
        rollout, epoch, update: the number of the rollout, of the pass over it, and of the mini-batch in the pass
        text_ids, text_mask: the plain texts, right-padded
    """

    def __init__(
        self,
        make: Callable[[int], Rollout],
        args: PolicyGradientConfig,
        *,
        first_rollout: int = 0,
        texts: list[list[int]] | None = None,
        pad_token_id: int = 0,
    ):
        self.make, self.args, self.index = make, args, first_rollout
        self.texts, self.pad_token_id = texts, pad_token_id

    def __iter__(self) -> Iterator[dict]:
        while True:
            yield from self.batches(self.make(self.index))
            self.index += 1

    def batches(self, rollout: Rollout) -> Iterator[dict]:
        args, device = self.args, rollout.mask.device
        lengths = rollout.mask.sum(1).cpu()  # (B,)
        for epoch in range(args.epochs_per_rollout):
            epochs_before = self.index * args.epochs_per_rollout + epoch
            order = permutation(len(rollout), seed=args.seed, stream=epochs_before)
            for update, rows in enumerate(order.split(args.mini_batch_size)):
                # Counts of the whole mini-batch: every process divides its losses by them.
                common = {
                    "num_tokens": lengths[rows].sum().clamp(min=1),
                    "num_completions": len(rows),
                    "rollout": self.index,
                    "epoch": epoch,
                    "update": update,
                }
                # Rows of like length share a micro-batch, so that little of it is padding.
                rows = rows[lengths[rows].argsort(stable=True)]
                completions_before = epochs_before * len(rollout) + update * len(rows)
                texts = self.text_batches(len(rows), completions_before)
                micro_batches = list(zip(rows.split(args.per_device_train_batch_size), texts))
                # Processes take turns, so that all of them get long rows and short ones.
                for micro_rows, text in micro_batches[args.process_index :: args.world_size]:
                    batch = rollout.rows(micro_rows.to(device))
                    batch |= {name: tensor.to(device) for name, tensor in text.items()}
                    yield batch | common

    def text_batches(self, count: int, completions_before: int) -> list[dict[str, Tensor]]:
        """The plain texts of each micro-batch, for a mini-batch of `count` completions."""
        size = self.args.per_device_train_batch_size
        starts = range(0, count, size)
        if self.texts is None:
            return [{} for _ in starts]
        texts = [self.texts_with(completions_before + i) for i in range(count)]
        num_tokens = sum(len(text) - 1 for text in sum(texts, []))  # the first is not predicted
        batches = []
        for start in starts:
            ids, mask = right_pad(sum(texts[start : start + size], []), self.pad_token_id)
            batch = {"text_ids": ids, "text_mask": mask}
            batches.append(batch | {"num_text_tokens": torch.tensor(num_tokens)})
        return batches

    def texts_with(self, completion: int) -> list[list[int]]:
        """The plain texts that go with a completion, counted over the whole run."""
        count, seed = (
            self.args.ptx_per_episode,
            self.args.seed + 1,
        )  # another order than the prompts'
        rows = choose_rows(len(self.texts), count, start=completion * count, seed=seed)
        return [self.texts[i] for i in rows]
