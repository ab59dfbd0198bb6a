"""Encoders: shapes, symmetries that they promise, and the algebra of the theory's network."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound.amortised import encoders

X = np.random.default_rng(0).standard_normal((7, 3))


def test_mlp_starts_at_its_linear_map_and_flattens():
    net = encoders.MLP.make(5, 4, jr.key(0), width=8)
    weight, bias = np.random.default_rng(1).standard_normal((4, 5)), np.arange(4.0)
    x = {"b": jnp.arange(3.0), "a": jnp.array([[5.0, 1.0]])}
    flat = jnp.array([5.0, 1.0, 0.0, 1.0, 2.0])
    only_net = net(x)
    np.testing.assert_allclose(
        net.starting_at(weight, bias)(x) - only_net, weight @ flat + bias, atol=1e-12
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoders.DeepSets.make(3, 4, jr.key(0), width=8),
        lambda: encoders.SetTransformer.make(3, 4, jr.key(0), width=8, heads=2, induced=3, seeds=2),
    ],
)
def test_set_encoders_do_not_see_the_order(make):
    net = jax.jit(make().__call__)
    np.testing.assert_allclose(net(jnp.asarray(X)), net(jnp.asarray(X[::-1])), atol=1e-12)
    assert np.abs(net(jnp.asarray(X)) - net(jnp.asarray(2 * X))).max() > 1e-6
    with pytest.raises(ValueError, match="takes a set as an array"):
        make()(jnp.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="takes x as one array"):
        make()({"a": jnp.zeros(3), "b": jnp.zeros(3)})


@pytest.mark.slow
def test_conv_net_averages_independent_images():
    image = jnp.asarray(np.random.default_rng(2).standard_normal((2, 12, 12)))
    stack = encoders.ConvNet.make((2, 12, 12), 3, jr.key(0), channels=(2, 4), width=8, images=True)
    single = [stack(image[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(stack(image), (single[0] + single[1]) / 2, atol=1e-12)
    assert encoders.ConvNet.make((12, 12), 3, jr.key(0), channels=(2,), width=8)(
        image[0]
    ).shape == (3,)


def test_wide_relu_starts_at_zero_and_is_linear_in_its_odd_part_without_a_constant():
    net = encoders.WideReLU.make(2, 2, jr.key(0), width=50, bias=False)
    x = jnp.array([0.3, -0.9])
    np.testing.assert_array_equal(net(x), 0.0)
    trained = encoders.WideReLU(net.inner, jr.normal(jr.key(1), (2, 50)), False)
    odd = lambda x: trained(x) - trained(-x)  # noqa: E731
    np.testing.assert_allclose(odd(x) + odd(2 * x), odd(3 * x), atol=1e-12)
    with_constant = encoders.WideReLU(jr.normal(jr.key(0), (50, 3)), trained.outer, True)
    odd = lambda x: with_constant(x) - with_constant(-x)  # noqa: E731
    assert np.abs(odd(x) + odd(2 * x) - odd(3 * x)).max() > 1e-3


def test_linearised_is_the_first_order_expansion():
    net = encoders.MLP.make(2, 2, jr.key(0), width=6)
    twin = encoders.Linearised.of(net)
    x, step = jnp.array([0.5, -1.0]), jax.tree.map(lambda leaf: 1e-4 * jnp.ones_like(leaf), net)
    moved = encoders.Linearised(twin.start, jax.tree.map(jnp.add, twin.now, step))
    np.testing.assert_allclose(twin(x), net(x), atol=1e-12)
    np.testing.assert_allclose(moved(x), jax.tree.map(jnp.add, net, step)(x), atol=1e-6)
    twice = encoders.Linearised(twin.start, jax.tree.map(lambda a, s: a + 2 * s, twin.now, step))
    # exactly linear in the weights
    np.testing.assert_allclose(twice(x) - net(x), 2 * (moved(x) - net(x)), atol=1e-12)
