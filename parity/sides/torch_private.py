"""The private classes and functions of PyTorch that this package uses, under names of its own.

Read from torch 2.14.1; `tests/parity/sides/test_private.py` fails first where a release changes them.
"""

from torch._C import DisableTorchFunction as without_functions
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormWithStatistics
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.modules.dropout import _DropoutNd as Dropout
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = [
    "BatchNorm",
    "Convolution",
    "Dropout",
    "NormWithStatistics",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "without_functions",
]
