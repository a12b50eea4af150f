"""The tests' own rulers: each passes rounding and fails what is more than that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compilation import assert_compiles_once
from tests.numerics import assert_as_exact_as, assert_close_to_torch, assert_rounded, gamma

RNG = np.random.default_rng(0)
X, KERNEL = (RNG.normal(size=shape).astype(np.float32) for shape in ((6, 50), (50, 4)))


def products(x, kernel):
    y = jnp.sin(x @ kernel)
    return y, y.sum(0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_function_is_as_exact_as_itself_and_a_coarser_one_is_not(precision):
    x, kernel = (jnp.asarray(array, precision) for array in (X, KERNEL))
    assert_as_exact_as(products(x, kernel), products, x, kernel, precision=precision)
    coarser = {"float32": jnp.bfloat16, "bfloat16": jnp.float8_e4m3fn}[precision]
    for wrong in (
        products(x.astype(coarser).astype(x.dtype), kernel),
        (products(x, kernel)[0], products(x[:5], kernel)[1]),
        jax.tree.map(lambda y: y * jnp.nan, products(x, kernel)),
    ):
        with pytest.raises(AssertionError, match="floor"):
            assert_as_exact_as(wrong, products, x, kernel, precision=precision)


def test_a_copy_of_a_network_is_close_to_it_and_a_coarser_one_is_not():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(160, 4)
    )
    images = RNG.normal(size=(2, 6, 7, 3)).astype(np.float32)
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        ours = {"0": network[0](x).permute(0, 2, 3, 1).numpy(), "output": network(x).numpy()}
    assert assert_close_to_torch(ours, network, images).keys() == ours.keys()
    for name, array in ours.items():
        with pytest.raises(AssertionError, match=rf"^{name}: "):
            assert_close_to_torch(ours | {name: array.astype(np.float16)}, network, images)


def test_the_bound_on_rounding_holds_in_any_order_and_for_no_coarser_type():
    values = RNG.normal(size=(100, 33))
    narrow = values.astype(np.float32)
    exact, size = narrow.sum(1, dtype=np.float64), np.abs(narrow).sum(1, dtype=np.float64)
    for order in (np.arange(33), np.arange(33)[::-1], RNG.permutation(33)):
        assert_rounded(narrow[:, order].cumsum(1)[:, -1], exact, 33, size)
    with pytest.raises(AssertionError, match="off by"):
        assert_rounded(narrow.astype(np.float16).sum(1), exact, 33, size)
    with pytest.raises(AssertionError, match="off by"):
        assert_rounded(np.full(100, np.nan), exact, 33, size)
    assert gamma(1) == pytest.approx(2.0**-24)
    assert gamma(1, jnp.bfloat16) == pytest.approx(2.0**-8, rel=0.01)


def test_compiling_twice_is_noticed():
    double = jax.jit(lambda x: x * 2)
    assert_compiles_once(lambda: double(np.ones(3, np.float32)))
    sizes = iter((4, 5))
    with pytest.raises(AssertionError, match="the second call compiled .*lambda"):
        assert_compiles_once(lambda: double(np.ones(next(sizes), np.float32)))
    with pytest.raises(AssertionError, match="the second call compiled"):
        assert_compiles_once(lambda: jax.jit(lambda x: x * 3)(np.ones(3, np.float32)))
    with pytest.raises(AssertionError, match="the first call compiled nothing"):
        assert_compiles_once(lambda: double(np.ones(3, np.float32)))
