"""One submodule of each side, alone, on the input that PyTorch's had: errors from before it play no part."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.checks.pair import Pair
from parity.checks.tolerance import relative
from parity.conversion.naming import named_modules
from parity.errors import ParityError
from parity.sides.base import Arrays
from parity.sides.flax import FlaxSide
from parity.sides.networks import is_torch
from parity.sides.recording import flatten_output, is_tensor, recording_torch

if TYPE_CHECKING:
    import torch

    from parity.sides.torch import TorchSide


@dataclass
class Recorded:
    """First inputs and the reference's outputs of every submodule, by PyTorch's path.

    The candidate's are in Flax's layout.
    """

    candidate_inputs: Arrays
    reference_inputs: "dict[str, torch.Tensor]"
    reference_outputs: "dict[str, torch.Tensor]"


def can_be_taken_apart(pair: Pair) -> bool:
    """Whether the candidate is made of NNX modules and the reference of PyTorch's."""
    ours, theirs = pair.given
    return isinstance(ours, nnx.Module) and not isinstance(ours, nnx.bridge.ToNNX) and is_torch(theirs)


def flax_and_torch(pair: Pair) -> "tuple[FlaxSide, TorchSide]":
    """The candidate and the reference, where they are modules that can be taken apart.

    Raises:
        ParityError: if they are anything else.
    """
    if not can_be_taken_apart(pair):
        raise ParityError("layers are compared one by one only between a Flax network and a PyTorch one")
    return cast(FlaxSide, pair.candidate), cast("TorchSide", pair.reference)


def record(pair: Pair, *, train: bool) -> Recorded:
    """A forward pass of both networks in the precision under test."""
    import torch

    candidate, side = flax_and_torch(pair)
    inputs = candidate.submodule_inputs(pair.inputs.candidate, train=train)
    statistics = side.state()
    side.set_mode(train)
    with torch.no_grad(), recording_torch(side.module) as recorder:
        side.forward(side.array(pair.inputs.reference))
    side.load(statistics)
    return Recorded(inputs, recorder.inputs, recorder.outputs)


@dataclass
class Isolated:
    """A submodule of ours and its counterpart, on one input.

    Attributes:
        path: PyTorch's.
        ours: a private copy, which tests may change.
        theirs: a private copy, in the precision under test.
        inputs: in Flax's layout.
        torch_inputs: the same in PyTorch's.
        expected: what the oracle makes of them, in PyTorch's layout.
        floor: the error of PyTorch's own output in the precision under test.
        limit: the error allowed.
        train: the mode.
    """

    path: str
    ours: nnx.Module
    theirs: "torch.nn.Module"
    inputs: jnp.ndarray
    torch_inputs: "torch.Tensor"
    expected: np.ndarray
    floor: float
    limit: float
    train: bool

    def output(self, module: Any = None) -> np.ndarray:
        """Our output, or that of a changed copy, in PyTorch's layout."""
        output = _only((module or nnx.clone(self.ours))(self.inputs))
        return _in_layout(np.asarray(output, np.float64), self.expected.shape)

    def error(self, module: Any = None) -> float:
        """Its error; infinite if the shape is another or it cannot run."""
        try:
            output = self.output(module)
        except (ValueError, TypeError):
            return np.inf
        return relative(output, self.expected) if output.shape == self.expected.shape else np.inf

    def agrees(self, output: np.ndarray) -> bool:
        """Whether this would be within the limit of what ours gives: for hypotheses tried on PyTorch's side."""
        ours = self.output()
        return output.shape == ours.shape and relative(output, ours) <= max(self.limit, 1e-3 * self.error())

    def vanishes(self, **attributes: Any) -> bool:
        """Whether a copy of ours with these attributes agrees with PyTorch."""
        changed = nnx.clone(self.ours)
        for name, value in attributes.items():
            setattr(changed, name, value)
        return self.settles(changed)

    def settles(self, changed: nnx.Module) -> bool:
        """Whether this module agrees with PyTorch, where ours does not."""
        error = self.error(changed)
        return error <= self.limit or error <= 1e-3 * self.error()


def isolate(pair: Pair, recorded: Recorded, path: str, *, train: bool) -> Isolated | None:
    """The submodule at `path` on both sides; None where it takes something that is not one array, or more than one."""
    import torch

    candidate, reference = flax_and_torch(pair)
    ours = {candidate.torch_path(name): module for name, module in named_modules(candidate.model(train=train))}
    torch_inputs = recorded.reference_inputs.get(path)
    if path not in ours or path not in recorded.candidate_inputs or torch_inputs is None or not is_tensor(torch_inputs):
        return None
    theirs = copy.deepcopy(reference.module.get_submodule(path))
    oracle = copy.deepcopy(theirs).double()
    x = torch_inputs.double() if torch_inputs.is_floating_point() else torch_inputs
    try:
        with torch.no_grad():
            expected = _only(oracle(x)).cpu().numpy()
    except Exception:  # it took more, by name
        return None
    array = pair.candidate.array(
        torch_inputs.float().cpu().numpy() if pair.precision != "float64" else _numpy(torch_inputs)
    )
    inputs = jnp.asarray(_in_layout(np.asarray(array), recorded.candidate_inputs[path].shape, to_flax=True))
    if torch_inputs.dtype is torch.bfloat16:
        inputs = inputs.astype(jnp.bfloat16)
    their_output = _only(recorded.reference_outputs[path]).double().cpu().numpy()
    floor = relative(their_output, expected)
    limit = max(pair.profile.k * floor, pair.profile.least_alone)
    return Isolated(path, ours[path], theirs, inputs, torch_inputs, expected, floor, limit, train)


def _numpy(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.cpu().numpy()


def _only(output: Any) -> Any:
    return next(iter(flatten_output(output).values()))


def _in_layout(array: np.ndarray, shape: tuple[int, ...], *, to_flax: bool = False) -> np.ndarray:
    """The array with its channels moved, if that gives the shape."""
    if array.ndim < 3:
        return array
    moved = np.moveaxis(array, 1, -1) if to_flax else np.moveaxis(array, -1, 1)
    return moved if moved.shape == shape and (array.ndim >= 4 or array.shape != shape) else array
