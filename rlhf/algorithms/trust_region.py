"""The trust-region step of TRPO: maximise the surrogate subject to KL(old || new) <= max_kl.

Schulman et al. 2015 (arXiv 1502.05477), equation 12 and appendix C: solve F x = g by conjugate gradient, scale x to the
bound, walk back until surrogate and KL agree. Where we differ:
- The products are Hessian-vector products of the KL by double backward, not the J^T M J of appendix C.1: slower by a
  constant, as C.1 says, but it holds for any network, and at old = new the two are equal.
- The caller adds damping (F v + damping v). The paper has none, its author's code (modular_rl) has it: far fewer samples
  than parameters make F singular, and without it conjugate gradient runs along directions no sample knows about.
- Conjugate gradient also stops at a relative residual, so that an easy system does not cost all its iterations (the
  paper's k = 10), and at non-positive curvature, which rounding brings about where F is singular.
- The line search asks for a part of the improvement promised by the gradient, not only for any (modular_rl). There the
  bound on the KL is not checked, and in baselines it is 1.5 times as wide. Here it holds exactly.

Vectors are flat, fp32 or better; their scalar products are summed in fp64.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf.algorithms.masking import where_doubles_exist


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All elements one after another, (N,), in fp32 or better."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # (N,)
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flatten`: pieces of vector (N,) with the shapes and dtypes of `like`, views where they can be."""
    sizes = [tensor.numel() for tensor in like]
    assert vector.shape == (sum(sizes),), (vector.shape, sum(sizes))
    pieces = zip(vector.split(sizes), like, strict=True)
    return [piece.view(tensor.shape).to(tensor.dtype) for piece, tensor in pieces]


def _dot(left: Tensor, right: Tensor) -> float:
    assert left.shape == right.shape and left.dim() == 1, (left.shape, right.shape)
    # In fp32 the small terms of the sum would be lost next to large ones.
    products = where_doubles_exist(left * right)
    return products.sum(dtype=torch.float64).item()


def categorical_kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """Exact KL divergence of two categorical distributions, per position.

    KL(old || new) = sum_v p_old(v) (log p_old(v) - log p(v)). TRPO, the constraint of equation 14.

    logits (..., V), any dtype, already divided by the temperature; -inf where a token is impossible. Returns (...), fp32
    or better. The old distribution is a constant, so that at old = new the gradient is 0 and the Hessian is the Fisher
    matrix. Rounding may leave it at -1e-8: no clamp, since there it would cut both off.
    """
    assert old_logits.shape == logits.shape, (old_logits.shape, logits.shape)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    old = old_logits.detach().log_softmax(-1, dtype=dtype)  # (..., V)
    new = logits.log_softmax(-1, dtype=dtype)
    probability = old.exp()
    # An impossible token gives 0 * (-inf + inf), which is NaN and should be 0.
    log_ratio = (old - new).masked_fill(probability == 0, 0.0)
    return (probability * log_ratio).sum(-1)


def differentiable_gradient(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradient d value / d parameters that is itself differentiable, with zeros for parameters that do not matter.

    value: a scalar; the result has the shapes of the parameters. Made once per step, for all Fisher-vector products. The
    forward pass must know second derivatives, and fused attention does not: run it under `sdpa_kernel(SDPBackend.MATH)`,
    or with the attention implementation "eager".
    """
    assert value.dim() == 0, value.shape
    return list(torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True))


def fisher_vector_product(
    gradient: Sequence[Tensor], parameters: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """Product of the Fisher matrix with a vector.

    F v = d (g . v) / d parameters, g the gradient of KL(old || new) at new = old. TRPO, appendix C.1; Pearlmutter 1994.

    gradient: `differentiable_gradient` of the mean KL, or of one micro-batch's share of it; then the products are summed,
    and damping v is added once, by the caller. vector (N,). Returns (N,). The graph is kept for the next vector.
    """
    gradients, vectors = [], []
    for part, piece in zip(gradient, unflatten(vector, gradient), strict=True):
        if part.requires_grad:
            gradients.append(part)
            vectors.append(piece)
    if not gradients:  # the KL does not depend on any parameter, or is linear in all of them
        return torch.zeros_like(vector)
    products = torch.autograd.grad(
        gradients, parameters, vectors, retain_graph=True, materialize_grads=True
    )
    return flatten(products)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int, tolerance: float
) -> Tensor:
    """Solve A x = target, A symmetric and positive definite, known by product(v) = A v. Hestenes and Stiefel 1952.

    From x = 0, r = p = target: alpha = |r|^2 / p.Ap, x += alpha p, r -= alpha Ap, p = r + (|r_new|^2 / |r|^2) p;
    `iterations` times, or until |r|^2 <= tolerance |target|^2. Where p.Ap is not positive (or NaN) it stops at the x so
    far: short of the solution every x but 0 still points uphill, target.x = x.Ax > 0. target (N,). Returns (N,).
    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = _dot(residual, residual)
    enough = tolerance * squared
    for _ in range(iterations):
        if squared <= enough:
            break
        image = product(direction)
        curvature = _dot(direction, image)
        if not curvature > 0:  # NaN too
            break
        solution.add_(direction, alpha=squared / curvature)
        residual.sub_(image, alpha=squared / curvature)
        previous, squared = squared, _dot(residual, residual)
        direction = residual + (squared / previous) * direction
    return solution


def step_length(direction: Tensor, product_of_direction: Tensor, *, max_kl: float) -> float:
    """Length of the step at which the quadratic model of the KL reaches max_kl.

    beta = sqrt(2 max_kl / x.Fx), for which (beta x).F(beta x) / 2 is max_kl. TRPO, appendix C.

    direction x (N,); product_of_direction F x (N,), damping included as in the search: it can only shorten
    the step. 0 where x.Fx is not positive.
    """
    curvature = _dot(direction, product_of_direction)
    if not curvature > 0:  # NaN too
        return 0.0
    return math.sqrt(2 * max_kl / curvature)


def line_search(
    measure: Callable[[float], tuple[float, float]],
    *,
    expected: float,
    max_kl: float,
    shrink: float,
    attempts: int,
    accept_ratio: float,
) -> tuple[float, float, float]:
    """Backtracking line search along the step.

    The first f of 1, shrink, shrink^2, ... with improvement(f) >= accept_ratio f expected, > 0, and KL(f) <= max_kl.
    TRPO, appendix C; the accepted part of the linear prediction is Armijo's rule. measure(f): surrogate improvement and
    mean KL(old || new) at parameters + f * full step. expected: gradient . full step. What is not finite is not accepted.
    Returns (f, improvement, KL), all 0 when none of `attempts` fractions will do. Then the caller has to put the old
    parameters back; otherwise the last fraction measured is the accepted one.
    """
    assert 0 < shrink < 1, shrink
    for attempt in range(attempts):
        fraction = shrink**attempt
        improvement, kl = measure(fraction)
        finite = math.isfinite(improvement) and math.isfinite(kl)
        better = improvement > 0 and improvement >= accept_ratio * fraction * expected
        if finite and better and kl <= max_kl:
            return fraction, improvement, kl
    return 0.0, 0.0, 0.0
