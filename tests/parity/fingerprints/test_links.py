"""What the norms are given, on either side."""

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.errors import ParityError
from parity.fingerprints.links import links_of
from tests.parity.fingerprints.networks import calibrated, patches, small


class Small(nnx.Module):
    """`networks.small`, under its names."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List()
        for before, after in ((3, 24), (24, 16), (16, 32)):
            self.layers.append(nnx.Conv(before, after, (3, 3), 2, padding=1, use_bias=False, rngs=rngs))
            self.layers.append(nnx.BatchNorm(after, epsilon=1e-5, rngs=rngs))

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
            x = nnx.relu(x) if isinstance(layer, nnx.BatchNorm) else x
        return x


def images() -> np.ndarray:
    return (patches(6, 20, 0) / np.float32(255)).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrated(small(), (patches(64, 20, 1) / np.float32(255)).astype(np.float32))


def directly(network: nn.Module, x: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each norm's mean and mean square per image, in float64 from the definition."""
    values = torch.from_numpy(np.moveaxis(x, -1, 1)).double()
    found = {}
    wide = small().double().eval()
    wide.load_state_dict(network.state_dict())
    for name, layer in wide.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            scale = (layer.running_var + layer.eps).sqrt()
            z = (values - layer.running_mean[:, None, None]) / scale[:, None, None]
            found[name] = z.mean((2, 3)).detach().numpy(), z.square().mean((2, 3)).detach().numpy()
        values = layer(values)
    return found


def flax(network: nn.Module) -> nnx.Module:
    names = {f"layers.{2 * n + part}": str(3 * n + part) for n in range(3) for part in (0, 1)}
    return parity.to_flax(network.state_dict(), Small(nnx.Rngs(0)), names=names)


@pytest.mark.parametrize("side", ["PyTorch", "Flax"])
def test_each_norm_has_the_moments_of_its_input(network, side):
    expected = directly(network, images())
    _, profile = links_of(network if side == "PyTorch" else flax(network))[1](images())
    assert len(profile) == len(expected)
    for moments, (mean, square) in zip(profile.values(), expected.values(), strict=True):
        # float32 against float64: sums of at most 27 * 24 products, then of at most 100 pixels
        np.testing.assert_allclose(moments.mean, mean, atol=1e-4)
        np.testing.assert_allclose(moments.square, square, rtol=1e-4, atol=1e-4)
    epsilon = 1e-5 / (network[1].running_var.numpy() + 1e-5)
    np.testing.assert_allclose(next(iter(profile.values())).epsilon, epsilon, rtol=1e-5)


def test_the_first_link_stops_after_the_first_norm(network):
    calls = []
    handle = network[3].register_forward_hook(lambda *_: calls.append(1))
    x = images()
    output, profile = links_of(network)[0](x)
    handle.remove()
    assert output is x
    assert list(profile) == ["1"]
    assert not calls


def test_a_network_is_left_as_it_was(network):
    network.train()
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    links_of(network)[1](images())
    assert [child.training for child in network[:3]] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(child._forward_pre_hooks for child in network)
    network.eval()


def test_a_norm_that_is_called_twice_has_both_calls():
    shared = calibrated(small(), images())
    twice = nn.Sequential(shared[0], shared[1], shared[1])
    assert list(links_of(twice)[1](images())[1]) == ["1", "1#2"]


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))],
    ids=["PyTorch", "Flax"],
)
def test_without_statistics_there_is_nothing_to_compare(network):
    with pytest.raises(ParityError, match="keeps a mean and a variance"):
        parity.fingerprint(network, patches(4, 20, 0))


def test_statistics_of_a_new_network_are_refused():
    with pytest.raises(ParityError, match="mean 0 and variance 1"):
        parity.fingerprint(small(), patches(4, 20, 0))


def test_what_is_no_network_is_refused():
    with pytest.raises(ParityError, match="expected"):
        parity.fingerprint(3, patches(4, 20, 0))
