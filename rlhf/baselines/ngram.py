r"""An n-gram language model with interpolated Kneser-Ney smoothing (Chen and Goodman 1998, section 2.7). It has no gradient.

p_k(w | u) = max(c(u w) - D_k, 0) / c(u .) + D_k N(u .) / c(u .) p_{k-1}(w | u'),  p_0 = 1 / V

u: the k - 1 tokens before w, and u' all but the first of them. N(u .): number of different tokens after u.
c: of the highest order the number of times u w occurs; below it the number of different tokens before u w.
D_k = n_1 / (n_1 + 2 n_2), with n_1 and n_2 grams of order k whose c is 1 and 2. It is 0.5 where there is no such gram.

Deviations:
- The start of a row counts as one token before a gram, and is never predicted. At the start of a row the order is lower.
- A history u that was not counted gives p_{k-1}, as the equation does in the limit.

Counts are sorted integer tensors. A gram of order k is one number: (index of its first k - 1 tokens in the table of order
k - 1) * V + its last token. The tokens after u are one interval of the table, and a gram is looked up by bisection.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from rlhf.baselines.language_model import (
    NOTHING,
    BaselineForCausalLM,
    LanguageModelOutput,
    RowState,
    TrunkOutput,
    check_at_least,
    left_aligned,
    loss_of,
    past_tokens,
    windows_of,
)
from rlhf.errors import UserError

HIGHEST_ORDER = 5
DEFAULT_DISCOUNT = 0.5  # where no gram occurs once
ROWS_PER_MERGE = 16384  # rows whose windows are counted together
COUNT_STEPS = (
    "is counted, not trained by gradient steps: count it with recipes/pretrain.py, and "
    "start from an MLP, RNN, LSTM, GRU or Transformer here"
)


class NgramConfig(PreTrainedConfig):
    """order: n, 1 to 5. table_sizes: grams of each order from 1 on, of a model that was counted."""

    model_type = "ngram"
    vocab_size: int = 8192
    order: int = 3
    table_sizes: list[int] | None = None


class HistoryModel(nn.Module):
    """The trunk of an n-gram: its "state" at a token is the order - 1 tokens that the next one depends on."""

    def __init__(self, order: int):
        super().__init__()
        self.order = order

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: RowState | None = None,
        use_cache: bool | None = None,
    ) -> TrunkOutput:
        """Histories (B, L, order - 1) as token ids, oldest first, NOTHING before the start of a row."""
        rows = left_aligned(input_ids, attention_mask)
        past = past_tokens(cache, input_ids, max(self.order - 2, 0))
        windows, last = windows_of(rows.align(input_ids), past, rows.lengths)
        windows = rows.restore(windows)
        if self.order == 1:
            windows = windows[..., :0]  # a unigram sees no token
        state = RowState((last,), dim=0) if use_cache else None
        return TrunkOutput(last_hidden_state=windows, cache=state)


class NgramForCausalLM(BaselineForCausalLM):
    """The counts, and the distribution of the next token that they give. Logits are log-probabilities."""

    config_class = NgramConfig
    base_model_prefix = "ngram"

    def __init__(self, config: NgramConfig):
        super().__init__(config)
        check_at_least(config, order=1, vocab_size=2)
        if config.order > HIGHEST_ORDER:
            raise UserError(f"ngram: order={config.order}: use 1 to {HIGHEST_ORDER}")
        sizes = config.table_sizes or [0] * config.order
        for k, size in enumerate(sizes, start=1):
            self.register_buffer(f"grams_{k}", torch.zeros(size, dtype=torch.long))
            self.register_buffer(f"counts_{k}", torch.zeros(size, dtype=torch.long))
        self.ngram = HistoryModel(config.order)
        # Read by rlhf.models.logits: no layer turns histories into logits, the forward pass does.
        self.logits_come_from = "own forward pass"
        # Not learned. A parameter, so that the model has a dtype and a device like any other.
        self.discounts = nn.Parameter(torch.zeros(config.order), requires_grad=False)
        self.loss_type = "ForCausalLM"
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is random."""

    def get_input_embeddings(self) -> nn.Module:
        raise UserError(f"an n-gram model has no embeddings: it {COUNT_STEPS}")

    @torch.no_grad()
    def set_counts(self, windows: Tensor, times: Tensor) -> None:
        """Fill the tables. windows, times: of `count_windows`, or of several of them through `add_counts`."""
        tables = tables_of(windows, times, self.config.vocab_size)
        self.config.table_sizes = [len(grams) for grams, _ in tables]
        for k, (grams, counts) in enumerate(tables, start=1):
            setattr(self, f"grams_{k}", grams)
            setattr(self, f"counts_{k}", counts)
            self.discounts[k - 1] = discount(counts)

    def table(self, k: int) -> tuple[Tensor, Tensor]:
        """(grams, counts) of an order."""
        return getattr(self, f"grams_{k}"), getattr(self, f"counts_{k}")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: RowState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> LanguageModelOutput:
        """Log-probabilities of the next tokens (B, L, V). The arguments are those of `NeuralForCausalLM`."""
        output = self.ngram(input_ids, attention_mask, cache=cache, use_cache=use_cache)
        histories = output.last_hidden_state
        if logits_to_keep:
            histories = histories[:, -logits_to_keep:]
        logits = self.log_probs(histories.flatten(0, 1)).view(*histories.shape[:2], -1)
        loss = loss_of(self, logits, labels, kwargs)
        return LanguageModelOutput(loss=loss, logits=logits, cache=output.cache)

    @torch.no_grad()
    def log_probs(self, histories: Tensor) -> Tensor:
        """Log-probabilities (N, V) after histories (N, order - 1), oldest first, NOTHING before the start of a row."""
        if not len(self.grams_1):
            raise UserError("this n-gram model holds no counts: count it with recipes/pretrain.py")
        # Many positions have the same history.
        index, count = ranks_of(histories)
        distinct = histories.new_empty(count, histories.shape[1])
        distinct[index] = histories
        vocabulary = self.config.vocab_size
        probs = torch.full((1, vocabulary), 1 / vocabulary, device=histories.device)  # p_0
        self._interpolate(probs, self.nodes_of(distinct[:1, :0]), 1)
        probs = probs.repeat(count, 1)  # all histories have the same p_1
        for k in range(2, self.config.order + 1):
            nodes = self.nodes_of(distinct[:, distinct.shape[1] - (k - 1) :])
            self._interpolate(probs, nodes, k)
        return probs.log().to(self.discounts.dtype)[index]

    def nodes_of(self, histories: Tensor) -> Tensor:
        """Index of each history (N, k) in the table of order k: (N,), -1 for one that was not counted. 0 for k = 0."""
        nodes = torch.zeros(len(histories), dtype=torch.long, device=histories.device)
        for k in range(histories.shape[1]):
            grams, _ = self.table(k + 1)
            tokens = histories[:, k]
            keys = nodes * self.config.vocab_size + tokens
            index = torch.searchsorted(grams, keys).clamp(max=len(grams) - 1)
            known = (nodes >= 0) & (tokens >= 0) & (grams[index] == keys)
            nodes = torch.where(known, index, -1)
        return nodes

    def _interpolate(self, probs: Tensor, nodes: Tensor, k: int) -> None:
        """p_{k-1} -> p_k in place. probs (N, V); nodes (N,) of the histories of order k - 1."""
        grams, counts = self.table(k)
        vocabulary = self.config.vocab_size
        known = torch.nonzero(nodes >= 0).squeeze(1)
        # The tokens after a history are one interval, whose ends are looked up.
        first = torch.searchsorted(grams, nodes[known] * vocabulary)
        end = torch.searchsorted(grams, (nodes[known] + 1) * vocabulary)
        kinds = end - first  # N(u .)
        some = kinds > 0
        known, first, kinds = known[some], first[some], kinds[some]
        # All intervals behind each other: `child` runs through the grams of each history in turn.
        row = torch.repeat_interleave(torch.arange(len(known), device=probs.device), kinds)
        start_of_row = kinds.cumsum(0) - kinds
        child = first[row] + torch.arange(len(row), device=probs.device) - start_of_row[row]
        totals = torch.zeros(len(known), device=probs.device)
        totals.index_add_(0, row, counts[child].float())
        lowered = self.discounts[k - 1].float()
        # What the discounts have freed goes to p_{k-1}.
        probs[known] *= (lowered * kinds / totals).unsqueeze(1)
        kept = (counts[child] - lowered) / totals[row]
        tokens = grams[child] % vocabulary
        probs[known[row], tokens] += kept  # no entry twice


# ---- counting ----------------------------------------------------------------------------------------------------


def count_windows(rows: Iterable[Sequence[int]], order: int) -> tuple[Tensor, Tensor]:
    """Count the windows of `order` + 1 tokens of rows: the token before a gram, then the gram.

    rows: token ids of each. A window has NOTHING where it reaches over the ends of its row.
    Returns the distinct windows (N, order + 1), sorted, and how often each occurs (N,).
    """
    total = (torch.zeros(0, order + 1, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    parts = []
    for row in rows:
        ids = torch.as_tensor(row, dtype=torch.long)
        # One window per token: each begins a gram of every order.
        padded = torch.cat([ids.new_full((1,), NOTHING), ids, ids.new_full((order - 1,), NOTHING)])
        parts.append(padded.unfold(0, order + 1, 1))  # (T, order + 1)
        if len(parts) == ROWS_PER_MERGE:
            total = _added(total, parts)
            parts = []
    return _added(total, parts)


def _added(total: tuple[Tensor, Tensor], parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """`total` and one more of each window of the parts."""
    once = [(part, torch.ones(len(part), dtype=torch.long)) for part in parts]
    return add_counts([total, *once])


def add_counts(counts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sum of several results of `count_windows`, for example of several processes."""
    windows = torch.cat([part for part, _ in counts])
    times = torch.cat([part for _, part in counts])
    index, number = ranks_of(windows)
    distinct = windows.new_empty(number, windows.shape[1])
    distinct[index] = windows
    return distinct, torch.zeros(number, dtype=torch.long).index_add_(0, index, times)


def ranks_of(rows: Tensor) -> tuple[Tensor, int]:
    """The index of each row (N, K) among the distinct rows in lexicographic order, and the number of these.

    A sort of single numbers per column. torch.unique(dim=0) gives the same and takes many times as long.
    """
    ranks = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    if not len(rows):
        return ranks, 0
    number = 1
    for column in rows.unbind(1):
        keys = ranks * (int(column.max()) + 2) + column + 1  # NOTHING is -1
        distinct, ranks = torch.unique(keys, return_inverse=True)
        number = len(distinct)
    return ranks, number


def tables_of(windows: Tensor, times: Tensor, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    """(sorted grams, counts c) of each order, from the windows of `count_windows`."""
    order = windows.shape[1] - 1
    tables = []
    # The windows of a row are all of its grams: a gram of order k begins each that is long enough.
    nodes = torch.zeros(len(windows), dtype=torch.long)  # of the gram so far, in its table
    inside = torch.ones(len(windows), dtype=torch.bool)  # the gram ends before its row does
    for k in range(1, order + 1):
        tokens = windows[:, k]
        inside = inside & (tokens != NOTHING)
        keys = nodes[inside] * vocabulary + tokens[inside]  # one number per gram
        grams, index = torch.unique(keys, return_inverse=True)
        nodes = nodes.clone()
        nodes[inside] = index
        if k == order:
            counts = torch.zeros(len(grams), dtype=torch.long).index_add_(0, index, times[inside])
        else:
            # NOTHING, the start of a row, is -1: it becomes 0.
            before = index * (vocabulary + 1) + windows[inside, 0] + 1
            distinct = torch.unique(before) // (vocabulary + 1)
            counts = torch.bincount(distinct, minlength=len(grams))
        tables.append((grams, counts))
    return tables


def discount(counts: Tensor) -> float:
    """D = n_1 / (n_1 + 2 n_2) of the counts of an order."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    if not once:
        return DEFAULT_DISCOUNT
    return once / (once + 2 * twice)
