"""Many requests to one model at once: a request joins the running batch when it comes and leaves it when it ends.

Each step reads the weights once for all answers, which is most of the work of a step. Prompts are read on their own, several
short ones together, a long one in parts between the steps of the others; then their keys and values join those of the batch,
aligned to the right.

transformers' continuous batching was measured against this loop (benchmarks/serving). It serves one user slower than
`generate`, an exception ends all of its requests, and it has neither stop strings nor the log-probs of other tokens, so it
is not used. What follows is built on transformers' caches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from rlhf.completions.cache import cache_argument, keeps_all_keys
from rlhf.models.parts import accepted_inputs, base_of, shape_of
from rlhf.serving.engine.answers import Answer, Request
from rlhf.serving.engine.models import ServedModel
from rlhf.serving.engine.prefixes import Prefix, Prefixes
from rlhf.serving.engine.sampling import choose_tokens

ROOM = 64  # columns that a cache grows by
PREFILL_TOKENS = 4096  # most tokens of prompts that are read together, padding included
STEP_TOKENS = 256  # of prompts that are read between two steps of the other answers
ENOUGH_TOKENS = 256  # that fill a processor
PADDING = 1.15  # most padded tokens per token, where there are enough
CACHE_BYTES = 4e9  # most memory for the keys and values of a batch
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer (B, heads, L, width), in a buffer with free columns behind them.

    transformers' own layer copies all of them at every step.
    """

    def __init__(self):
        super().__init__()
        self.buffers: tuple[Tensor, Tensor] | None = None
        self.end = 0  # columns of the buffers that are in use

    def update(self, key_states, value_states, *args, **kwargs):
        if self.buffers is None:
            self.lazy_initialization(key_states, value_states)
            self.buffers = _with_room(key_states, ROOM), _with_room(value_states, ROOM)
            self.end = key_states.shape[-2]
        else:
            self._append(key_states, value_states)
        self._show()
        return self.keys, self.values

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        new = key_states.shape[-2]
        if self.end + new > self.buffers[0].shape[-2]:
            self.set(self.keys, self.values, room=new + ROOM)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.end : self.end + new] = states
        self.end += new

    def set(self, keys: Tensor, values: Tensor, room: int = ROOM) -> None:
        """Hold copies of these keys and values, with room for more columns."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.buffers = _with_room(keys, room), _with_room(values, room)
        self.end = keys.shape[-2]
        self._show()

    def _show(self) -> None:
        keys, values = self.buffers
        self.keys = keys[:, :, : self.end]
        self.values = values[:, :, : self.end]


def _with_room(states: Tensor, room: int) -> Tensor:
    """A copy (B, heads, L + room, width)."""
    rows, heads, length, width = states.shape
    buffer = states.new_zeros(rows, heads, length + room, width)
    buffer[:, :, :length] = states
    return buffer


@dataclass
class Rows:
    """Rows that are generated together.

    layers: their keys and values (B, heads, L, width). The tokens of a row are the last `lengths` columns of it.
    lengths (B,): tokens of each row that the cache holds.
    """

    cache: Cache
    lengths: Tensor

    @property
    def width(self) -> int:
        return self.cache.layers[0].keys.shape[-2]

    def keep(self, kept: list[int]) -> None:
        """Drop all rows but these, and the columns that none of them uses."""
        index = torch.tensor(kept, device=self.lengths.device)
        self.lengths = self.lengths[index]
        unused = self.width - int(self.lengths.max())
        for layer in self.cache.layers:
            layer.set(layer.keys[index, :, unused:], layer.values[index, :, unused:])

    def prefix(self, row: int, ids: list[int]) -> Prefix:
        """A copy of what the cache holds of a row. ids: its tokens, the newest of which it may not have read."""
        length = int(self.lengths[row])
        layers = []
        for layer in self.cache.layers:
            keys, values = layer.keys[row : row + 1], layer.values[row : row + 1]
            layers.append((keys[:, :, -length:].clone(), values[:, :, -length:].clone()))
        return Prefix(ids[:length], layers)

    def join(self, other: "Rows") -> None:
        """Add the rows of another batch behind these."""
        width = max(self.width, other.width)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            keys = [_widened(mine.keys, width), _widened(theirs.keys, width)]
            values = [_widened(mine.values, width), _widened(theirs.values, width)]
            mine.set(torch.cat(keys), torch.cat(values))
        self.lengths = torch.cat([self.lengths, other.lengths])


def _widened(states: Tensor, width: int) -> Tensor:
    """States (B, heads, L, D) with columns of zeros in front, up to `width`."""
    missing = width - states.shape[-2]
    return torch.nn.functional.pad(states, (0, 0, missing, 0))


def read_prompts(model, prompts: list[list[int]], past: Rows | None = None) -> tuple[Tensor, Rows]:
    """Run the model over prompts. Returns the logits (B, V) of the next tokens, and the rows.

    past: of a single prompt, the rows that hold the beginning of it.
    """
    known = 0 if past is None else int(past.lengths[0])
    lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)
    width = int(lengths.max())
    ids = torch.zeros(len(prompts), width - known, dtype=torch.long, device=model.device)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = torch.tensor(prompt[known:])
    cache = past.cache if past is not None else _empty_cache(model)
    rows = Rows(cache, lengths)
    columns = torch.arange(known, width, device=model.device)
    positions = columns - (width - lengths).unsqueeze(1)
    logits = _forward(model, rows, ids, positions.clamp(min=0))
    return logits, rows


def rows_of(prefix: Prefix, count: int) -> Rows:
    """A row that holds the first tokens of a kept conversation."""
    layers = []
    for keys, values in prefix.layers:
        layer = GrowingLayer()
        layer.set(keys[:, :, :count], values[:, :, :count])
        layers.append(layer)
    return Rows(Cache(layers=layers), torch.tensor([count], device=keys.device))


def read_tokens(model, rows: Rows, tokens: list[int]) -> Tensor:
    """Add a token to each row. Returns the logits (B, V) of the next ones."""
    ids = torch.tensor(tokens, device=model.device).unsqueeze(1)
    positions = rows.lengths.unsqueeze(1)
    rows.lengths = rows.lengths + 1
    return _forward(model, rows, ids, positions)


def _forward(model, rows: Rows, ids: Tensor, positions: Tensor) -> Tensor:
    """Logits (B, V) behind the last column. rows.lengths: with the new tokens."""
    past = rows.cache.layers[0]
    width = ids.shape[1] + (past.keys.shape[-2] if past.is_initialized else 0)
    mask = None
    if int(rows.lengths.min()) < width:
        columns = torch.arange(width, device=ids.device)
        mask = (columns >= width - rows.lengths.unsqueeze(1)).long()
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        cache_argument(type(base_of(model))): rows.cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    output = model(**accepted_inputs(base_of(model), inputs))
    return output.logits[:, -1].float()


def _empty_cache(model) -> Cache:
    layers = DynamicCache(config=model.config).layers
    return Cache(layers=[GrowingLayer() for _ in layers])


@torch.inference_mode()
def can_batch(model) -> bool:
    """True if rows that join and leave a batch get the logits that they get alone.

    It is tried on the model itself: architectures differ in what their caches hold, and in the masks that they heed.
    """
    try:
        return keeps_all_keys(model) and _rows_agree(model)
    except Exception:  # noqa: BLE001
        return False


def _rows_agree(model) -> bool:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    texts = [[5, 3, 8, 2, 7], [4, 9], [6, 1, 5]]
    texts = [[token % vocabulary for token in text] for text in texts]
    # Two rows of different length, a third one that joins them, the first one that leaves: then what two are left?
    _, rows = read_prompts(model, texts[:2])
    _, part = read_prompts(model, [texts[2][:1]])
    _, late = read_prompts(model, texts[2:], part)
    rows.join(late)
    read_tokens(model, rows, [1, 2, 3])
    rows.keep([1, 2])
    together = read_tokens(model, rows, [2, 1])
    alone = []
    for ids in (texts[1] + [2, 2], texts[2] + [3, 1]):
        output = model(input_ids=torch.tensor([ids], device=model.device))
        alone.append(output.logits[0, -1].float())
    expected = torch.stack(alone)
    spread = expected.std().clamp(min=1e-6)
    difference = (together - expected).abs().max() / spread
    return bool(difference <= TOLERANCE.get(model.dtype, 1e-3))


def count_to_read(lengths: list[int]) -> int:
    """Count the prompts, of these from the shortest on, that are read together.

    Short ones gain by company. Once they fill the processor, padding costs as much as words.
    """
    tokens = lengths[0]
    for count, longest in enumerate(lengths[1:], start=1):
        tokens += longest
        padded = (count + 1) * longest
        if padded > PREFILL_TOKENS or (tokens > ENOUGH_TOKENS and padded > PADDING * tokens):
            return count
    return len(lengths)


class BatchedGenerator:
    """Generates the answers to many requests, one token of each per step.

    reuse: keep the keys and values of finished conversations for their next turn.
    """

    def __init__(self, served: ServedModel, capacity: int, *, reuse: bool = True):
        self.served, self.capacity = served, capacity
        self.prefixes = Prefixes() if reuse else None
        self.answers: list[Answer] = []  # the rows of the batch, in order
        self.joining: list[Answer] = []  # whose prompts are not read yet, in their order
        self.rows: Rows | None = None
        self._has_read = False  # since the last step
        self.parts: dict[Request, Rows] = {}  # long prompts of which only the beginning is read

        shape = shape_of(served.model)
        numbers = 2 * shape.layers * shape.kv_heads * shape.head_width  # keys and values
        self.bytes_per_token = numbers * served.model.dtype.itemsize

    @property
    def busy(self) -> bool:
        return bool(self.answers or self.joining)

    def has_room(self, request: Request, joining: list[Answer]) -> bool:
        """True if the answers to a request fit into the batch. joining: those that are admitted with it.

        Every row has as many columns as the longest one.
        """
        answers = [*self.answers, *self.joining, *joining]
        if not answers:
            return True
        rows = len(answers) + request.n
        longest = len(request.prompt.ids) + request.prompt.room
        for answer in answers:
            longest = max(longest, len(answer.prompt_ids) + answer.room)
        return rows <= self.capacity and rows * longest * self.bytes_per_token <= CACHE_BYTES

    @torch.inference_mode()
    def add(self, answers: list[Answer]) -> None:
        """Let answers join. Their prompts are read, and their first tokens drawn, now or in the next steps."""
        self.joining += answers
        self._read_some()
        self._has_read = True

    @torch.inference_mode()
    def step(self) -> None:
        """Read some of the prompts that wait, and draw the next token of each answer."""
        if not self._has_read:  # the others have waited once already
            self._read_some()
        self._has_read = False
        self._drop_finished()
        if not self.answers:
            return
        last = [answer.tokens[-1] for answer in self.answers]
        try:
            logits = read_tokens(self.served.model, self.rows, last)
        except Exception as error:  # noqa: BLE001
            self._start_again(error)
            return
        _take(self.answers, logits)
        self._drop_finished()

    def _read_some(self) -> None:
        """Read about STEP_TOKENS tokens of the prompts in line, or one short prompt at least."""
        # A budget, so that nobody who writes waits for all who come.
        left = STEP_TOKENS
        while left > 0:
            self.joining = [answer for answer in self.joining if not answer.stop_if_asked()]
            # The part of a request that has ended is memory that nobody uses.
            waiting = {answer.request for answer in self.joining}
            self.parts = {one: rows for one, rows in self.parts.items() if one in waiting}
            if not self.joining:
                return
            left -= self._read_next()

    def _read_next(self) -> int:
        """Read the first prompt in line, with others of like length, or a part of it. Returns the number of tokens."""
        first = self.joining[0]
        known = self._known_rows(first)
        start = 0 if known is None else int(known.lengths[0])
        if len(first.prompt_ids) - start > STEP_TOKENS:
            self._read_part(first, known, start)
            return STEP_TOKENS
        # A known beginning belongs to one prompt, so that no other can share the pass.
        group = self._with(first) if known is not None else self._like(first)
        joined = set(group)
        self.joining = [answer for answer in self.joining if answer not in joined]
        self._begin(group, known)
        # Answers to one request cost its prompt once.
        lengths = {answer.request: len(answer.prompt_ids) - start for answer in group}
        return sum(lengths.values())

    def _read_part(self, first: Answer, known: Rows | None, start: int) -> None:
        # The logits behind a part are of no use: only its keys and values stay.
        ids = first.prompt_ids[: start + STEP_TOKENS]
        try:
            _, self.parts[first.request] = read_prompts(self.served.model, [ids], known)
        except Exception as error:  # noqa: BLE001
            first.request.fail(error)
        # The others have their turn before the next part.
        own = self._with(first)
        self.joining = [answer for answer in self.joining if answer not in own] + own

    def _with(self, first: Answer) -> list[Answer]:
        """The answers in line that belong to the same request."""
        return [answer for answer in self.joining if answer.request is first.request]

    def _known(self, answer: Answer) -> tuple[Prefix | None, int]:
        """The kept conversation that begins like the prompt of an answer, and how many tokens of it."""
        if self.prefixes is None:
            return None, 0
        return self.prefixes.find(answer.prompt_ids)

    def _known_rows(self, answer: Answer) -> Rows | None:
        """A row that holds the beginning of a prompt: the part that is read, or a kept conversation."""
        if answer.request in self.parts:
            return self.parts[answer.request]
        prefix, count = self._known(answer)
        return None if prefix is None else rows_of(prefix, count)

    def _like(self, first: Answer) -> list[Answer]:
        """The first answer, and those in line that may be read with it: unknown prompts of like length."""

        def distance(answer: Answer) -> int:
            return abs(len(answer.prompt_ids) - len(first.prompt_ids))

        # The nearest in length come first, so that padding stays small.
        requests = [first.request]  # each prompt is read once
        group = []
        for answer in sorted(self.joining, key=distance):
            if answer.request not in requests:
                lengths = sorted(len(one.prompt.ids) for one in [*requests, answer.request])
                # A long prompt would make the others wait for it.
                if lengths[-1] > STEP_TOKENS or count_to_read(lengths) < len(lengths):
                    continue
                # What is known needs a pass of its own, and a shorter one.
                if answer.request in self.parts or self._known(answer)[1] > 0:
                    continue
                requests.append(answer.request)
            group.append(answer)
        return group

    def _begin(self, answers: list[Answer], known: Rows | None = None) -> None:
        """Answers that share a prefill and join the batch. known: a row with the beginning of the prompt of all."""
        try:
            logits, rows = self._read(answers, known)
        except Exception as error:  # noqa: BLE001
            # Nobody else can be the cause.
            if all(answer.request is answers[0].request for answer in answers):
                answers[0].request.fail(error)
                return
            # One of them may be the cause: each is tried alone.
            for answer in answers:
                self._begin([answer])
            return
        _take(answers, logits)
        growing = [i for i, answer in enumerate(answers) if not answer.stop_if_asked()]
        if not growing:
            return
        if len(growing) < len(answers):
            rows.keep(growing)
        if self.rows is None:
            self.rows = rows
        else:
            self.rows.join(rows)
        self.answers += [answers[i] for i in growing]

    def _read(self, answers: list[Answer], known: Rows | None) -> tuple[Tensor, Rows]:
        """The logits and rows of answers. Several answers to one prompt share its reading."""
        texts = [answer.prompt_ids + answer.tokens for answer in answers]
        # Best-of-n and rankings ask for many answers to one prompt.
        distinct: list[list[int]] = []
        for text in texts:
            if text not in distinct:
                distinct.append(text)
        logits, rows = read_prompts(self.served.model, distinct, known)
        if len(distinct) < len(texts):
            index = [distinct.index(text) for text in texts]
            # Rows may be named more than once.
            rows.keep(index)
            logits = logits[index]
        return logits, rows

    def _start_again(self, error: Exception) -> None:
        """After an exception, which may have left half a column in the cache: read every row again, alone.

        So a row that is the cause fails alone. A single row has failed already.
        """
        answers, self.answers, self.rows = self.answers, [], None
        if len(answers) == 1:
            answers[0].request.fail(error)
            return
        for answer in answers:
            self._begin([answer])

    def _drop_finished(self) -> None:
        kept = []
        for i, answer in enumerate(self.answers):
            if not answer.stop_if_asked():
                kept.append(i)
            elif self.prefixes is not None and answer.finish is not None:
                self.prefixes.add(self.rows.prefix(i, answer.prompt_ids + answer.tokens))
        if len(kept) == len(self.answers):
            return
        self.answers = [self.answers[i] for i in kept]
        if kept:
            self.rows.keep(kept)
        else:
            self.rows = None


def _take(answers: list[Answer], logits: Tensor) -> None:
    """Hand each answer its next token. What goes wrong there ends that request only."""
    tokens = choose_tokens(logits, answers)
    for answer, token, row in zip(answers, tokens, logits, strict=True):
        if answer.over:  # another answer to the same request failed
            continue
        try:
            answer.take(token, row)
        except Exception as error:  # noqa: BLE001
            answer.request.fail(error)
