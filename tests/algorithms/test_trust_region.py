import math
import random

import pytest
import torch

from rlhf.algorithms.masking import masked_mean, standardize
from rlhf.algorithms.trust_region import (
    categorical_kl,
    conjugate_gradient,
    differentiable_gradient,
    fisher_vector_product,
    flatten,
    line_search,
    step_length,
    unflatten,
)

INFINITY, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def spd(size: int) -> torch.Tensor:
    root = torch.randn(size, size, dtype=torch.double)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.double)


def network(dtype=torch.double) -> torch.nn.Module:
    """Three features, four hidden units, five outcomes; 41 parameters, the second derivative of tanh is not 0."""
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5)).to(
        dtype
    )


def plain_kl(old_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The definition, without logarithms of softmax; (N, V) -> mean over N."""
    old, new = old_logits.detach().softmax(-1), logits.softmax(-1)
    return (old * (old / new).log()).sum(-1).mean()


def matrix(product, size: int, dtype=torch.double) -> torch.Tensor:
    return torch.stack([product(row) for row in torch.eye(size, dtype=dtype)])


# ---- flat vectors ----


def test_flatten_by_hand_and_back():
    tensors = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, torch.tensor(5.0), torch.zeros(0, 2)]
    flat = flatten(tensors)
    assert flat.tolist() == [1.0, 3.0, 2.0, 4.0, 5.0]
    for piece, tensor in zip(unflatten(flat, tensors), tensors, strict=True):
        assert torch.equal(piece, tensor)


def test_flat_vectors_are_fp32_or_better_and_the_pieces_have_the_parameters_dtype():
    assert flatten([torch.ones(2, dtype=torch.bfloat16)]).dtype == torch.float32
    assert flatten([torch.ones(2, dtype=torch.double), torch.ones(1)]).dtype == torch.double
    assert [
        x.dtype
        for x in unflatten(torch.ones(2), [torch.ones(1, dtype=torch.bfloat16), torch.ones(1)])
    ] == [
        torch.bfloat16,
        torch.float32,
    ]


# ---- KL ----


def test_categorical_kl_by_hand():
    """(1/2, 1/2) against (1/4, 3/4): log(2)/2 + log(2/3)/2; the other way round log(1/2)/4 + 3 log(3/2)/4."""
    half, quarter = (
        torch.tensor([[1.0, 1.0], [5.0, 5.0]]).log(),
        torch.tensor([[1.0, 3.0], [2.0, 6.0]]).log(),
    )
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    torch.testing.assert_close(categorical_kl(half, quarter), torch.tensor([expected, expected]))
    reverse = -0.25 * math.log(2) + 0.75 * math.log(1.5)
    torch.testing.assert_close(categorical_kl(quarter, half), torch.tensor([reverse, reverse]))
    assert abs(reverse - expected) > 0.01  # so that the wrong direction could not pass


def test_categorical_kl_of_equals_is_0_and_its_gradient_too():
    logits = torch.randn(3, 7, requires_grad=True)
    kl = categorical_kl(logits, logits + 3.0)
    kl.sum().backward()
    torch.testing.assert_close(kl, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros(3, 7), atol=1e-6, rtol=0)


def test_categorical_kl_is_that_of_torch_for_any_leading_shape():
    old, new = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x) for x in (old, new))
    )
    torch.testing.assert_close(categorical_kl(old, new), expected)
    assert categorical_kl(old[0], new[0]).shape == (3,)


def test_categorical_kl_is_fp32_for_bf16_logits():
    old, new = ((4 * torch.randn(6, 50)).to(torch.bfloat16) for _ in range(2))
    found = categorical_kl(old, new)
    assert found.dtype == torch.float32
    exact = torch.stack([plain_kl(a[None].double(), b[None].double()) for a, b in zip(old, new)])
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


def test_impossible_tokens_count_nothing_and_leave_both_derivatives_finite():
    """(1/2, 1/2, impossible) against (1/4, 3/4, impossible) is the same as without the third token."""
    possible = torch.tensor([1.0, 3.0]).log().requires_grad_()
    nothing = torch.tensor([-INFINITY])
    old, new = torch.cat([torch.zeros(2), nothing]), torch.cat([possible, nothing])
    kl = categorical_kl(old, new)
    assert kl.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    gradient = differentiable_gradient(kl, [possible])
    torch.testing.assert_close(gradient[0], torch.tensor([0.25 - 0.5, 0.75 - 0.5]))  # p - p_old
    found = matrix(lambda v: fisher_vector_product(gradient, [possible], v), 2, torch.float32)
    torch.testing.assert_close(
        found, torch.tensor([[3 / 16, -3 / 16], [-3 / 16, 3 / 16]])
    )  # diag(p) - p p^T


def test_a_kl_that_rounding_made_negative_keeps_its_hessian():
    """A constant added to the old logits changes nothing but the rounding: F v = p v - p (p.v) in every row."""
    logits, vector = torch.randn(100, 7, requires_grad=True), torch.randn(100, 7)
    kl = categorical_kl(logits + 3.0, logits)
    assert (kl < 0).any()
    found = fisher_vector_product(
        differentiable_gradient(kl.sum(), [logits]), [logits], vector.view(-1)
    )
    p = logits.detach().softmax(-1)
    torch.testing.assert_close(
        found.view(100, 7), p * vector - p * (p * vector).sum(-1, keepdim=True)
    )


def test_what_became_impossible_costs_infinitely_much_and_what_became_possible_does_not():
    two, one = torch.zeros(1, 2), torch.tensor([[0.0, -INFINITY]])
    assert categorical_kl(two, one).item() == INFINITY
    assert categorical_kl(one, two).item() == pytest.approx(math.log(2))
    nearly = torch.tensor([[0.0, -200.0]])  # its probability rounds to 0
    assert categorical_kl(nearly, one).item() == 0


# ---- Fisher-vector product ----


def fisher_of(model: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    logits, parameters = model(states), list(model.parameters())
    gradient = differentiable_gradient(categorical_kl(logits, logits).mean(), parameters)
    size = sum(p.numel() for p in parameters)
    return matrix(lambda v: fisher_vector_product(gradient, parameters, v), size)


def test_fisher_vector_product_equals_the_hessian_of_kl():
    model, states = network(), torch.randn(6, 3, dtype=torch.double)
    old = model(states).detach()

    def kl_of(theta):
        first, first_bias, second, second_bias = theta.split([12, 4, 20, 5])
        hidden = torch.tanh(states @ first.view(4, 3).T + first_bias)
        return plain_kl(old, hidden @ second.view(5, 4).T + second_bias)

    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(kl_of, theta)
    assert hessian.abs().max() > 0.01
    torch.testing.assert_close(fisher_of(model, states), hessian, atol=1e-12, rtol=1e-10)


def test_fisher_vector_product_equals_the_fisher_matrix_summed_over_all_outcomes():
    """E_s sum_a p(a|s) grad log p(a|s) grad log p(a|s)^T."""
    model, states = network(), torch.randn(6, 3, dtype=torch.double)
    expected = 0
    for state in states:
        log_probs = model(state).log_softmax(-1)
        for log_prob in log_probs:
            gradient = torch.autograd.grad(log_prob, list(model.parameters()), retain_graph=True)
            score = torch.cat([g.reshape(-1) for g in gradient])
            expected = expected + log_prob.detach().exp() * torch.outer(score, score) / len(states)
    found = fisher_of(model, states)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    assert torch.linalg.eigvalsh(found).min() > -1e-12


def test_fisher_vector_product_by_hand():
    """Logits are the parameters, p = (1/4, 3/4): F = diag(p) - p p^T = 3/16 (1, -1; -1, 1), and v = (2, 1) gives 3/16."""
    logits = torch.tensor([1.0, 3.0]).log().requires_grad_()
    gradient = differentiable_gradient(categorical_kl(logits, logits), [logits])
    found = fisher_vector_product(gradient, [logits], torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([3 / 16, -3 / 16]))


def test_the_graph_can_be_used_again_and_again_and_no_grad_is_touched():
    model, states = network(torch.float32), torch.randn(6, 3)
    logits, parameters = model(states), list(model.parameters())
    gradient = differentiable_gradient(categorical_kl(logits, logits).mean(), parameters)
    vector, other = torch.randn(41), torch.randn(41)
    first = fisher_vector_product(gradient, parameters, vector)
    between = fisher_vector_product(gradient, parameters, other)
    assert torch.equal(fisher_vector_product(gradient, parameters, vector), first)
    together = fisher_vector_product(gradient, parameters, vector + 2 * other)
    torch.testing.assert_close(together, first + 2 * between, atol=1e-5, rtol=1e-5)  # linear in v
    assert not first.requires_grad and all(p.grad is None for p in parameters)


def test_micro_batches_sum_to_the_whole():
    model, states = network(), torch.randn(6, 3, dtype=torch.double)
    parts = states.split([1, 3, 2])
    summed = sum(fisher_of(model, part) * len(part) for part in parts) / len(states)
    torch.testing.assert_close(summed, fisher_of(model, states), atol=1e-12, rtol=1e-10)


def test_parameters_that_do_not_matter_give_zeros():
    used, unused = torch.randn(4, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    parameters = [unused, used]
    gradient = differentiable_gradient(categorical_kl(used, used), parameters)
    found = fisher_vector_product(gradient, parameters, torch.ones(10).cumsum(0))
    gradient = differentiable_gradient(categorical_kl(used, used), [used])
    alone = fisher_vector_product(gradient, [used], torch.arange(7.0, 11.0))
    assert not found[:6].any() and found[6:].any()
    torch.testing.assert_close(found[6:], alone)

    elsewhere = torch.randn(4, requires_grad=True)
    gradient = differentiable_gradient(categorical_kl(elsewhere, elsewhere), [unused])
    assert fisher_vector_product(gradient, [unused], torch.ones(6)).tolist() == [0.0] * 6
    gradient = [torch.zeros(2, 3)]  # a constant has no second derivative
    assert fisher_vector_product(gradient, [unused], torch.ones(6)).tolist() == [0.0] * 6


def test_padding_changes_nothing_and_all_masked_gives_zeros():
    model, states = network(), torch.randn(2, 3, 3, dtype=torch.double)
    parameters, vector = list(model.parameters()), torch.randn(41, dtype=torch.double)

    def product(of, mask):
        logits = model(of)
        gradient = differentiable_gradient(
            masked_mean(categorical_kl(logits, logits), mask), parameters
        )
        return fisher_vector_product(gradient, parameters, vector)

    mask = torch.tensor([[True, True, False], [True, False, False]])
    alone = states[mask][None]
    torch.testing.assert_close(
        product(states, mask), product(alone, torch.ones(1, 3, dtype=torch.bool))
    )
    assert not product(states, torch.zeros(2, 3, dtype=torch.bool)).any()


# ---- conjugate gradient ----


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_conjugate_gradient_solves_a_random_spd_system(size, seed):
    """In at most `size` products, as in exact arithmetic: the condition number is about 5, so rounding does not matter."""
    torch.manual_seed(seed)
    system = spd(size) + torch.eye(size, dtype=torch.double)
    target, calls = torch.randn(size, dtype=torch.double), []

    def product(vector):
        calls.append(vector)
        return system @ vector

    found = conjugate_gradient(product, target, iterations=size, tolerance=0.0)
    torch.testing.assert_close(found, torch.linalg.solve(system, target), atol=1e-10, rtol=1e-10)
    assert len(calls) <= size


def test_conjugate_gradient_by_hand():
    """(4, 1; 1, 3) x = (1, 2): first step 5 / 20 along (1, 2), second (1/11, 7/11)."""
    system, target = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    none = conjugate_gradient(system.mv, target, iterations=0, tolerance=0.0)
    first = conjugate_gradient(system.mv, target, iterations=1, tolerance=0.0)
    second = conjugate_gradient(system.mv, target, iterations=2, tolerance=0.0)
    assert none.tolist() == [0.0, 0.0]
    torch.testing.assert_close(first, torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(second, torch.tensor([1 / 11, 7 / 11]))
    assert target.tolist() == [1.0, 2.0]  # not changed in place


def test_conjugate_gradient_needs_one_product_per_distinct_eigenvalue():
    turn, _ = torch.linalg.qr(torch.randn(30, 30, dtype=torch.double))
    system = turn @ torch.diag(torch.tensor([1.0, 2.0, 5.0] * 10, dtype=torch.double)) @ turn.T
    target, calls = torch.randn(30, dtype=torch.double), []
    found = conjugate_gradient(
        lambda v: calls.append(v) or system @ v, target, iterations=30, tolerance=1e-20
    )
    assert len(calls) == 3
    torch.testing.assert_close(found, torch.linalg.solve(system, target))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-10])
def test_conjugate_gradient_stops_at_the_relative_residual_whatever_the_scale(tolerance):
    system, target, counts = spd(40), torch.randn(40, dtype=torch.double), []
    for scale in (1e-6, 1.0, 1e6):
        calls = []
        found = conjugate_gradient(
            lambda v: calls.append(v) or system @ v,  # noqa: B023
            scale * target,
            iterations=200,
            tolerance=tolerance,
        )
        residual = system @ found - scale * target
        assert residual @ residual <= 1.01 * tolerance * scale**2 * target @ target
        counts.append(len(calls))
    assert counts[0] == counts[1] == counts[2] < 60


@pytest.mark.parametrize("iterations", range(1, 8))
def test_an_unfinished_solution_points_uphill(iterations):
    """target . x = x . A x > 0 after any number of iterations, so the policy step along x raises the surrogate."""
    system, target = spd(20), torch.randn(20, dtype=torch.double)
    found = conjugate_gradient(system.mv, target, iterations=iterations, tolerance=0.0)
    assert (target @ found).item() > 0
    torch.testing.assert_close(target @ found, found @ system @ found)


def test_conjugate_gradient_in_fp32():
    system, target = spd(50), torch.randn(50, dtype=torch.double)
    found = conjugate_gradient(system.float().mv, target.float(), iterations=200, tolerance=1e-12)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), torch.linalg.solve(system, target), atol=1e-3, rtol=1e-3
    )


def test_conjugate_gradient_of_0_is_0_without_a_product():
    def product(vector):
        raise AssertionError("not needed")

    assert (
        conjugate_gradient(product, torch.zeros(3), iterations=10, tolerance=1e-10).tolist()
        == [0.0] * 3
    )
    assert (
        conjugate_gradient(product, torch.zeros(3), iterations=10, tolerance=0.0).tolist()
        == [0.0] * 3
    )


def test_conjugate_gradient_stops_at_non_positive_curvature():
    """diag(2, -1), target (2, 1): 5/7 along (2, 1), then p = (30, 120) / 49 with p.Ap < 0."""
    system = torch.diag(torch.tensor([2.0, -1.0]))
    found = conjugate_gradient(system.mv, torch.tensor([2.0, 1.0]), iterations=10, tolerance=0.0)
    torch.testing.assert_close(found, torch.tensor([10 / 7, 5 / 7]))
    for hopeless in (-torch.eye(2), torch.zeros(2, 2), torch.full((2, 2), NAN)):
        found = conjugate_gradient(hopeless.mv, torch.ones(2), iterations=10, tolerance=0.0)
        assert found.tolist() == [0.0, 0.0]


# ---- step length ----


def test_step_length_by_hand():
    """x.Fx = 3 * 6 + 4 * 8 = 50: sqrt(2 * 0.25 / 50) = 0.1."""
    assert step_length(
        torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]), max_kl=0.25
    ) == pytest.approx(0.1)


def test_step_length_brings_the_quadratic_kl_to_the_bound_whatever_the_direction_is_scaled_by():
    fisher, direction = spd(6), torch.randn(6, dtype=torch.double)
    for scale in (1e-4, 1.0, 1e4):
        x = scale * direction
        step = step_length(x, fisher @ x, max_kl=0.01) * x
        assert (0.5 * step @ fisher @ step).item() == pytest.approx(0.01, rel=1e-10)


def test_scalar_products_keep_what_fp32_sums_would_lose():
    """10^8 + 1 - 10^8 is 1, and 0 in fp32."""
    direction, product = torch.tensor([1e4, 1.0, 1e4]), torch.tensor([1e4, 1.0, -1e4])
    assert step_length(direction, product, max_kl=0.02) == pytest.approx(0.2)


@pytest.mark.parametrize("product", [[-1.0, 0.0], [0.0, 0.0], [NAN, 1.0], [INFINITY, 0.0]])
def test_step_length_is_0_where_the_curvature_is_not_positive(product):
    assert step_length(torch.tensor([1.0, 1.0]), torch.tensor(product), max_kl=0.01) == 0
    assert step_length(torch.zeros(2), torch.zeros(2), max_kl=0.01) == 0


# ---- line search ----


def search(measure, **changed):
    settings = {"expected": 1.0, "max_kl": 0.01, "shrink": 0.5, "attempts": 10, "accept_ratio": 0.1}
    return line_search(measure, **(settings | changed))


def test_line_search_takes_the_full_step_where_it_will_do():
    asked = []
    assert search(lambda f: asked.append(f) or (f, 0.01 * f * f)) == (1.0, 1.0, 0.01)
    assert asked == [1.0]


def test_line_search_by_hand():
    """KL 0.1 f^2 <= 0.01 from f = 1/4 on (1/2 gives 0.025); improvement f - f^2 is 3/16 there."""
    asked = []
    assert search(lambda f: asked.append(f) or (f - f * f, 0.1 * f * f)) == (0.25, 0.1875, 0.00625)
    assert asked == [1.0, 0.5, 0.25]


def test_line_search_asks_for_a_part_of_the_promised_improvement():
    """f (1 - 0.95 f) >= ratio f: 1 - 0.95 f >= ratio; f = 1 gives 0.05, 1/2 0.525, 1/4 0.7625."""

    def measure(f):
        return f * (1 - 0.95 * f), 0.0

    assert [search(measure, accept_ratio=ratio)[0] for ratio in (0.0, 0.1, 0.6)] == [1.0, 0.5, 0.25]
    assert search(measure, accept_ratio=0.1, expected=0.1)[0] == 1.0  # promised less


@pytest.mark.parametrize("shrink", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kl", [0.011, 0.05, 1.0])
def test_line_search_shrinks_as_often_as_the_bound_needs(shrink, kl):
    """kl f^2 <= 0.01 at f = shrink^k: k = ceil(log(0.01 / kl) / (2 log shrink))."""
    found, improvement, reached = search(lambda f: (f, kl * f * f), shrink=shrink, attempts=50)
    needed = math.ceil(math.log(0.01 / kl) / (2 * math.log(shrink)))
    assert found == pytest.approx(shrink**needed)
    assert (improvement, reached) == pytest.approx((found, kl * found**2))


@pytest.mark.parametrize(
    "measured",
    [
        (-1.0, 0.0),
        (0.0, 0.0),
        (0.01, 0.02),
        (NAN, 0.0),
        (1.0, NAN),
        (NAN, NAN),
        (INFINITY, 0.0),
        (1.0, -INFINITY),
    ]
    + [(1.0, INFINITY)],
)
def test_line_search_returns_0_when_nothing_works_and_nan_is_not_accepted(measured):
    asked = []
    assert search(lambda f: asked.append(f) or measured, attempts=4) == (0.0, 0.0, 0.0)
    assert asked == [1.0, 0.5, 0.25, 0.125]


def test_line_search_goes_on_after_nan():
    assert search(lambda f: (NAN, NAN) if f > 0.3 else (f, 0.0)) == (0.25, 0.25, 0.0)
    assert search(lambda f: (f, 0.0), expected=NAN) == (0.0, 0.0, 0.0)
    assert search(lambda f: (f, 0.0), attempts=0) == (0.0, 0.0, 0.0)


def test_line_search_accepts_a_kl_that_rounding_made_negative():
    assert search(lambda f: (f, -1e-9)) == (1.0, 1.0, -1e-9)


def quadratic(draw: random.Random):
    """Improvement a f - b f^2, KL c f^2 + d f, of any sign and size, NaN for long steps at times; and what was asked."""
    a, b, d = (draw.gauss(0, 1) for _ in range(3))
    c, limit, seen = math.exp(draw.gauss(0, 3)), draw.random() if draw.random() < 0.2 else 1.0, []

    def measure(f):
        nan = NAN if f > limit else 0.0
        seen.append((f, a * f - b * f * f + nan, c * f * f + 0.01 * d * f + nan))
        return seen[-1][1:]

    return measure, a, seen


def test_no_accepted_step_breaks_the_bound_on_random_quadratics():
    """And what was passed over on the way was passed over for a reason."""
    draw, accepted, refused = random.Random(0), 0, 0
    for _ in range(3000):
        measure, expected, seen = quadratic(draw)
        settings = {"shrink": draw.uniform(0.2, 0.9), "attempts": draw.randrange(1, 12)}
        max_kl, accept_ratio = math.exp(draw.gauss(-4, 2)), draw.choice([0.0, 0.1, 0.5])
        found = line_search(
            measure, expected=expected, max_kl=max_kl, accept_ratio=accept_ratio, **settings
        )
        fine = [
            kl <= max_kl and gain > 0 and gain >= accept_ratio * expected * f
            for f, gain, kl in seen
        ]
        assert [f for f, _, _ in seen] == pytest.approx(
            [settings["shrink"] ** k for k in range(len(seen))]
        )
        if found[0] == 0:
            refused += 1
            assert found == (0.0, 0.0, 0.0) and len(seen) == settings["attempts"] and not any(fine)
        else:
            accepted += 1
            assert found == seen[-1] and fine == [False] * (len(seen) - 1) + [True]
    assert accepted > 500 and refused > 500


# ---- the whole step ----


@pytest.mark.parametrize(
    ("max_kl", "damping"), [(0.001, 0.1), (0.01, 0.1), (0.01, 0.001), (0.3, 0.001)]
)
@pytest.mark.parametrize("seed", range(20))
def test_no_accepted_step_breaks_the_bound_on_a_categorical_policy(seed, max_kl, damping):
    """Ragged rows of sampled actions with random advantages, in fp32; the KL is measured again from its definition."""
    torch.manual_seed(seed)
    model, states = network(torch.float32), torch.randn(8, 6, 3)
    parameters = list(model.parameters())
    mask = torch.arange(6) < torch.randint(1, 7, (8, 1))
    actions = torch.distributions.Categorical(logits=model(states)).sample()
    advantages = standardize(torch.randn(8, 6), mask)

    def look():
        logits = model(states)
        return logits, logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    old_logits, old_log_probs = (x.detach() for x in look())
    logits, log_probs = look()
    surrogate = masked_mean((log_probs - old_log_probs).exp() * advantages, mask)
    gradient = flatten(torch.autograd.grad(surrogate, parameters, retain_graph=True))
    of_kl = differentiable_gradient(
        masked_mean(categorical_kl(old_logits, logits), mask), parameters
    )

    def product(vector):
        return fisher_vector_product(of_kl, parameters, vector) + damping * vector

    direction = conjugate_gradient(product, gradient, iterations=10, tolerance=1e-10)
    step = step_length(direction, product(direction), max_kl=max_kl) * direction
    start = flatten(parameters).detach()

    @torch.no_grad()
    def measure(fraction):
        for parameter, value in zip(parameters, unflatten(start + fraction * step, parameters)):
            parameter.copy_(value)
        logits, log_probs = look()
        improvement = masked_mean((log_probs - old_log_probs).exp() * advantages, mask) - surrogate
        return improvement.item(), masked_mean(categorical_kl(old_logits, logits), mask).item()

    settings = {"shrink": 0.5, "attempts": 10, "accept_ratio": 0.1}
    fraction, improvement, kl = line_search(
        measure, expected=(gradient @ step).item(), max_kl=max_kl, **settings
    )
    assert fraction > 0 and improvement > 0 and 0 < kl <= max_kl
    measure(fraction)
    again = plain_kl(old_logits[mask].double(), model(states)[mask].double()).item()
    assert again == pytest.approx(kl, abs=1e-6) and again <= max_kl + 1e-6
    if (
        damping == 0.1
    ):  # the quadratic model holds as far as the step goes; with less, every other full step is refused
        assert fraction == 1 and kl > max_kl / 5


def test_a_small_full_step_lands_on_the_bound():
    """The quadratic model is exact in the limit: without damping and in fp64, KL / max_kl -> 1."""
    model, states = network(), torch.randn(30, 3, dtype=torch.double)
    parameters, old = list(model.parameters()), model(states).detach()
    of_kl = differentiable_gradient(categorical_kl(old, model(states)).mean(), parameters)
    direction = torch.randn(41, dtype=torch.double)
    length = step_length(
        direction, fisher_vector_product(of_kl, parameters, direction), max_kl=1e-8
    )
    with torch.no_grad():
        for parameter, change in zip(parameters, unflatten(length * direction, parameters)):
            parameter.add_(change)
        assert plain_kl(old, model(states)).item() == pytest.approx(1e-8, rel=1e-3)
