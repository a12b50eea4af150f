"""The private parts of PyTorch that are used still mean what they meant."""

import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from torch import nn

from parity.sides import torch_private


def test_private_classes_are_the_ancestors_of_the_public_ones():
    for private, public in {
        torch_private.Convolution: (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d),
        torch_private.BatchNorm: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        torch_private.NormWithStatistics: (nn.BatchNorm2d, nn.InstanceNorm2d),
        torch_private.Dropout: (nn.Dropout, nn.Dropout2d, nn.AlphaDropout),
    }.items():
        assert all(issubclass(kind, private) for kind in public), private
    assert not issubclass(nn.InstanceNorm2d, torch_private.BatchNorm)


def test_trees_are_mapped_leaf_by_leaf():
    tree = {"a": (torch.ones(1), [torch.ones(2)]), "b": 3}
    mapped = torch_private.tree_map_only(torch.Tensor, lambda tensor: tensor + 1, tree)
    assert mapped["a"][1][0].tolist() == [2, 2]
    assert mapped["b"] == 3
    assert torch_private.tree_leaves({"a": (1, [2]), "b": 3}) == [1, 2, 3]


def test_functions_are_not_seen_where_that_is_switched_off():
    class Seen(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    with Seen() as mode:
        torch.ones(1).relu()
        seen = mode.calls
        with torch_private.without_functions():
            torch.ones(1).relu()
    assert seen
    assert mode.calls == seen
