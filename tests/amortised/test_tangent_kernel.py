"""The tangent kernel: its closed form for the theory's network, and its rank."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound.amortised import antipodal, encoders, heads, tangent_kernel
from tightbound.families import Conditional, Scaling

ANGLES = np.array([0.3, 1.2, 2.1, 2.9])
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def network(bias, width=400):
    encoder = encoders.WideReLU.make(2, 2, jr.key(11), width=width, bias=bias)
    return Conditional(encoder, heads.VonMises(), Scaling.none(np.zeros(2), 1))


def test_at_the_start_it_is_the_arc_cosine_kernel():
    """K = |x||y| / (2 pi) (sin t + (pi - t) cos t) times the identity, in the limit of infinite
    width.
    """
    width = 40_000
    gram = tangent_kernel(network(False, width), CIRCLE).gram
    t = np.abs(ANGLES[:, None] - ANGLES)
    expected = np.kron((np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi), np.eye(2))
    # sds of relu(u)^2 are about 1.1
    np.testing.assert_allclose(gram, expected, atol=5 / np.sqrt(width))


def test_it_is_the_jacobian_times_its_transpose():
    net = network(True, 6)
    net = Conditional(
        encoders.WideReLU(net.encoder.inner, jr.normal(jr.key(0), (2, 6)), True),
        net.head,
        net.scaling,
    )
    flat = lambda w, a, x: encoders.WideReLU(w, a, True)(x)  # noqa: E731
    rows = []
    for x in jnp.asarray(CIRCLE):
        parts = jax.jacobian(flat, (0, 1))(net.encoder.inner, net.encoder.outer, x)
        rows.append(np.concatenate([np.asarray(p).reshape(2, -1) for p in parts], axis=1))
    rows = np.concatenate(rows)
    kernel = tangent_kernel(net, CIRCLE)
    np.testing.assert_allclose(kernel.gram, rows @ rows.T, atol=1e-10)
    assert kernel.effective_rank == pytest.approx(
        np.trace(rows @ rows.T) ** 2 / np.sum((rows @ rows.T) ** 2)
    )
    assert kernel.drift(kernel) == 0


def test_without_a_constant_the_kernel_is_singular_on_antipodal_points():
    found = antipodal(network(False), CIRCLE)
    # four pairs, two outputs: exactly four functions cannot be reached
    assert found.detail.missing == 4
    assert found.verdict == "caution"
    assert "Append a constant" in found.why
    assert antipodal(network(True), CIRCLE).verdict == "pass"
