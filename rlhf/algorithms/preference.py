"""Losses of direct preference optimisation: a policy learns from pairs of answers, without a reward model.

Each formula takes the log-ratios of N pairs, log pi(y) - log pi_ref(y) summed over the tokens of the answer y (EOS counts),
and gives the loss of each pair: shapes (N,), (N,) -> (N,). beta times a log-ratio is the implicit reward of an answer.

Omitted: trl's `aot` and `aot_unpaired`, which sort the pairs of a batch, so that no pair has a loss of its own, and `sft`,
which learns the chosen answer alone.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def pairs_of_ranks(ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of answers to one prompt of which one is better. Ties are no pairs.

    ranks (B, K) ints, 0 = best; mask (B, K) bool, True where there is an answer.
    Returns the prompt of each pair, and the index of its better and its worse answer: (P,) each.
    """
    assert ranks.shape == mask.shape, (ranks.shape, mask.shape)
    better = ranks.unsqueeze(2) < ranks.unsqueeze(1)  # (B, K, K): row i before column j
    better = better & mask.unsqueeze(2) & mask.unsqueeze(1)
    prompts, chosen, rejected = better.nonzero(as_tuple=True)
    return prompts, chosen, rejected


def pair_weights(prompts: Tensor) -> Tensor:
    """The weight of each pair, 1 / the number of pairs of its prompt, so that every prompt counts once. (P,) -> (P,)."""
    counts = torch.bincount(prompts)
    return 1.0 / counts[prompts]


def sigmoid_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)). DPO, Rafailov et al. 2023 (arXiv 2305.18290), equation 7."""
    return -logsigmoid(beta * (chosen - rejected))


def hinge_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta (chosen - rejected)). SLiC on log-ratios, as RSO has it: Liu et al. 2023 (arXiv 2309.06657)."""
    return torch.relu(1 - beta * (chosen - rejected))


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """(h - 1 / (2 beta))^2, h the difference of the log-ratios per token. IPO, Azar et al. 2023 (arXiv 2310.12036), eq. 17.

    Per token: as trl has it, after asking the authors. beta is their tau. Lengths (N,) in tokens.
    """
    difference = chosen / chosen_lengths - rejected / rejected_lengths
    return (difference - 1 / (2 * beta)) ** 2


def sigmoid_norm_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """DPO on the log-ratios per token, so that a longer answer has no larger reward. Lengths (N,) in tokens.

    Tulu 3, Lambert et al. 2024 (arXiv 2411.15124), section 5.1.
    """
    return -logsigmoid(beta * (chosen / chosen_lengths - rejected / rejected_lengths))


def robust_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO without the bias of labels of which a share is swapped: label_smoothing in (0, 0.5).

    ((1 - e) l(h) - e l(-h)) / (1 - 2 e), l = -log sigmoid. Chowdhury et al. 2024 (arXiv 2403.00409), equation 12.
    """
    margins = beta * (chosen - rejected)
    kept = (1 - label_smoothing) * -logsigmoid(margins)
    swapped = label_smoothing * -logsigmoid(-margins)
    return (kept - swapped) / (1 - 2 * label_smoothing)


def exo_pair_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """KL of sigmoid(beta (chosen - rejected)) to 1 - label_smoothing. EXO, Ji et al. 2024 (arXiv 2402.00856), eq. 16."""
    margins = beta * (chosen - rejected)
    target = torch.tensor(label_smoothing, dtype=margins.dtype, device=margins.device)
    better = margins.sigmoid() * (logsigmoid(margins) - torch.log1p(-target))
    worse = (-margins).sigmoid() * (logsigmoid(-margins) - torch.log(target))
    return better + worse


def nca_pair_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Noise contrast of two answers, which keeps the chosen one likely. NCA, Chen et al. 2024 (arXiv 2402.05369)."""
    better, worse = beta * chosen, beta * rejected
    return -logsigmoid(better) - 0.5 * logsigmoid(-better) - 0.5 * logsigmoid(-worse)


def bco_pair_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """A classifier of chosen and rejected, without its shift. BCO, Jung et al. 2024 (arXiv 2404.04656)."""
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def sppo_hard_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Log-ratios of 1 / (2 beta) and its negative. SPPO, Wu et al. 2024 (arXiv 2405.00675), eq. 4.7 with P of 1 and 0."""
    target = 0.5 / beta
    return (chosen - target) ** 2 + (rejected + target) ** 2


def apo_zero_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Chosen up and rejected down, for chosen answers better than the model's. D'Oosterlinck et al. 2024 (2408.06266)."""
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Both down, rejected more, for chosen answers worse than the model's. D'Oosterlinck et al. 2024 (2408.06266)."""
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


def discopop_loss(chosen: Tensor, rejected: Tensor, *, beta: float, discopop_tau: float) -> Tensor:
    """A blend of the logistic and the exponential loss. DiscoPOP, Lu et al. 2024 (arXiv 2406.08414), equation 5."""
    margins = beta * (chosen - rejected)
    share = torch.sigmoid(margins / discopop_tau)
    return -logsigmoid(margins) * (1 - share) + torch.exp(-margins) * share


# Value of the key loss_type -> its formula. The names are trl's.
PAIR_LOSSES = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "robust": robust_loss,
    "hinge": hinge_loss,
    "sigmoid_norm": sigmoid_norm_loss,
    "exo_pair": exo_pair_loss,
    "nca_pair": nca_pair_loss,
    "bco_pair": bco_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
}
