"""The served models: loading them, keeping a few in memory, and what is known of one without its weights."""

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from rlhf.errors import UserError
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import context_length, freeze, stop_token_ids
from rlhf.models.precision import convert_for_answers
from rlhf.models.snapshots import model_folder
from rlhf.models.value_functions import guide_ilql
from rlhf.runs.record import RECORD, RunRecord
from rlhf.serving.engine.model_cache import LOADING
from rlhf.serving.engine.prompts import PromptReader
from rlhf.serving.engine.requests import ModelFacts

METRICS_SHOWN = 8
# Files that a model is read from. They are not written in one moment, so that each of them counts.
STAMPED = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "value_model/action_values.safetensors",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
OTHER_SCRIPTS = 0.002  # share of the tokens from which a tokenizer knows more than ASCII


def check_device(device: str) -> None:
    """Raise UserError if this machine does not have the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used here ({reason}): use cpu") from error


# ---- a model that answers ----------------------------------------------------------------------------------------


@dataclass
class ServedModel:
    """A loaded policy. stop_tokens: each of them ends an answer."""

    model: torch.nn.Module
    tokenizer: object

    @property
    def stop_tokens(self) -> list[int]:
        return self.model.generation_config.eos_token_id or []


def load_for_answers(path: str, precision: str, device: str) -> ServedModel:
    """A policy and its tokenizer, ready to generate. precision: as in `convert_for_answers`."""
    with LOADING:
        tokenizer = load_tokenizer(path)
        model = freeze(load_policy(path))
    model = convert_for_answers(model, precision, torch.device(device))
    guide_ilql(model, path)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id
    # A checkpoint may name its own sampling settings. Only its stop tokens are used: the rest comes with the request.
    model.generation_config = GenerationConfig(
        eos_token_id=stop_token_ids(model, tokenizer) or None, pad_token_id=pad
    )
    return ServedModel(model, tokenizer)


def stamp_of(path: str) -> tuple:
    """A key that changes with the files of a model: the path, and the sizes and times of those that are read."""
    states = []
    for name in STAMPED:
        # One that disappears in this moment is missing, too.
        with suppress(OSError):  # missing, as all of them for a Hub id
            state = (Path(path) / name).stat()
            states.append((name, state.st_size, state.st_mtime_ns))
    return str(path), *states


# ---- without its weights -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """The facts and the tokenizer that requests to a model are checked with, before it is loaded."""

    facts: ModelFacts
    reader: PromptReader


def read_known(path: str, most_new_tokens: int) -> Known:
    """The tokenizer and the facts of a run folder or Hub id."""
    tokenizer = load_tokenizer(path)
    folder = Path(model_folder(path, weights=False))
    context, config = _context_and_config(str(folder))
    characters = known_characters(tokenizer)
    record = None
    if (folder / RECORD).is_file():
        record = RunRecord.load(folder)
    facts = ModelFacts(
        context=context,
        max_new_tokens=min(most_new_tokens, max(1, context - 1)),
        trained_turns=getattr(config, "trained_turns", None),
        system_prompt=getattr(config, "trained_system", None),
        characters=characters,
        path=path,
        kind="causal",
        stage=_stage(path, record),
        created=record.started[:10] if record else "",
        metrics=_few_metrics(record),
    )
    reader = PromptReader(
        tokenizer, context, facts.trained_turns, knows_ascii_only=characters == "ASCII"
    )
    return Known(facts, reader)


def _context_and_config(path: str):
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):  # no weights: it takes milliseconds
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # noqa: BLE001
        # A folder of another kind, or none: loading says what is wrong in the project's own words.
        model = load_policy(path)
    return context_length(model), model.config


def _stage(path: str, record: RunRecord | None) -> str:
    if record is not None:
        recipe = "base" if record.recipe == "pretrain" else record.recipe
        return record.config.get("algorithm") or recipe
    return "base" if Path(path).is_dir() else "hub"


def _few_metrics(record: RunRecord | None) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, value in (record.metrics if record else {}).items():
        if isinstance(value, (int, float)) and len(metrics) < METRICS_SHOWN:
            metrics[name] = value
    return metrics


def known_characters(tokenizer) -> str | None:
    """ "ASCII" for a tokenizer that has hardly a token with another character in it; None for others.

    A byte-level tokenizer can write any character, but one that it learned from English has only the bytes of others.
    """
    others = 0
    size = len(tokenizer)
    for text in tokenizer.batch_decode([[i] for i in range(size)]):
        # Half a character decodes to a replacement character.
        if not text.isascii() and "\N{REPLACEMENT CHARACTER}" not in text:
            others += 1
    if others < OTHER_SCRIPTS * size:
        return "ASCII"
    return None


# ---- sharing the machine -----------------------------------------------------------------------------------------


class Turns:
    """A lock that is given in the order in which it was asked for, so that one busy model cannot keep the cores."""

    def __init__(self):
        self._changed = threading.Condition()
        self._line: list[object] = []  # the first one has the lock

    @contextmanager
    def turn(self, owner: object):
        """Hold the lock. owner: who asks, once at a time."""
        self.take(owner)
        try:
            yield
        finally:
            self.give_back(owner)

    def take(self, owner: object) -> None:
        with self._changed:
            self._line.append(owner)
            while owner in self._line and self._line[0] is not owner:
                self._changed.wait()

    def give_back(self, owner: object) -> None:
        """Leave the lock, or the line. Nothing happens for an owner that has been removed."""
        with self._changed:
            if owner in self._line:
                self._line.remove(owner)
                self._changed.notify_all()

    def pass_on(self, owner: object) -> None:
        """Let others go first, if there are any."""
        if len(self._line) > 1:
            self.give_back(owner)
            self.take(owner)


class Memory:
    """Room for `keep` loaded models. A model that wants in asks the least recently used one to leave."""

    def __init__(self, keep: int):
        self.keep = max(1, keep)
        self._changed = threading.Condition()
        self.loaded: list = []  # workers
        self._asking: list = []  # workers that wait for room

    def enter(self, worker) -> bool:
        """Wait for room. False if the worker is to end instead."""
        with self._changed:
            self._asking.append(worker)
            try:
                while len(self.loaded) >= self.keep or self._asking[0] is not worker:
                    if worker.ending:
                        return False
                    self._ask_to_leave()
                    self._changed.wait(timeout=0.2)
                self.loaded.append(worker)
                return True
            finally:
                self._asking.remove(worker)
                self._changed.notify_all()

    def _ask_to_leave(self) -> None:
        free = self.keep - len(self.loaded)
        leaving = sum(worker.leaving for worker in self.loaded)
        candidates = [worker for worker in self.loaded if not worker.leaving]
        candidates.sort(key=lambda worker: worker.used)
        for worker in candidates[: max(0, len(self._asking) - free - leaving)]:
            worker.leave_soon()

    def leave(self, worker) -> None:
        with self._changed:
            if worker in self.loaded:
                self.loaded.remove(worker)
                self._changed.notify_all()
