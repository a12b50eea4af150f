"""The private parts of PyTorch that are used still mean what they meant."""

import pytest

torch = pytest.importorskip("torch")

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
