"""PyTorch's network, run in several arrangements that mean the same."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from parity.conversion.convert import as_numpy
from parity.errors import ParityError
from parity.sides import dropout
from parity.sides.base import (
    INPUTS,
    OUTPUT,
    PLAIN,
    Arrangement,
    Arrays,
    Loss,
    Run,
    Train,
    arguments_of,
    map_arrays,
    mode_arguments,
    named_arrays,
    with_arrays,
)
from parity.sides.losses import require_scalar
from parity.sides.optimizers import Optimizer
from parity.sides.recording import flatten_output, map_output, recording_torch
from parity.sides.torch_private import Dropout
from parity.sides.trainers import TorchTrainer


class TorchSide:
    """A private copy of a PyTorch network in one precision: "float64", "float32", or "bfloat16" (autocast)."""

    framework = "PyTorch"

    def __init__(self, module: torch.nn.Module, precision: str, device: str = "cpu"):
        self.precision, self.device = precision, torch.device(device)
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        try:
            self.module = copy.deepcopy(module)
        except RuntimeError as error:
            reason = str(error).split(".")[0]
            raise ParityError(
                f"the PyTorch network cannot be copied ({reason}): detach the tensors it stores"
            ) from error
        try:
            self.module.to(self.device)
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                tensor.data = self._cast(tensor.data)
        except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
            raise ParityError(f"PyTorch cannot compute on {device!r}: {str(error).splitlines()[0]}") from error

        dropout.turn_off(self.module.modules())

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floats and complex values in the run's precision, anything else as it is."""
        if tensor.is_complex():
            return tensor.to(self.dtype.to_complex())
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def array(self, array: Any) -> Any:
        """A copy of an array, or of nested tuples and dicts of them, on the device; floats in the run's dtype."""

        def converted(value: Any) -> torch.Tensor:
            tensor = torch.tensor(np.ascontiguousarray(value), device=self.device)
            kept = tensor.dtype is torch.bool or tensor.is_floating_point() or tensor.is_complex()
            return self._cast(tensor) if kept else tensor.long()

        return map_arrays(converted, array)

    def mode_arguments(self, inputs: Any) -> dict[str, bool]:
        """The switches by which the network's call takes its mode, and their values in train mode."""
        return mode_arguments(self.module.forward, inputs)

    @property
    def parameters(self) -> list[str]:
        return [name for name, _ in self.module.named_parameters()]

    @property
    def trained(self) -> list[str]:
        return [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]

    @property
    def takes_tokens(self) -> bool:
        return any(isinstance(module, torch.nn.Embedding) for module in self.module.modules())

    @property
    def has_train_mode(self) -> bool:
        """Whether anything depends on the mode: a network without buffers computes the same in both."""
        return any(True for _ in self.module.buffers())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of a tied parameter under the first of its names only."""
        first = {id(parameter): name for name, parameter in self.module.named_parameters()}
        entries = self.module.state_dict(keep_vars=True)
        return {name: tuple(tensor.shape) for name, tensor in entries.items() if first.get(id(tensor), name) == name}

    def trainer(self, optimizer: Optimizer) -> TorchTrainer:
        return TorchTrainer(self, optimizer)

    def train_with(self, train: Train, batches: Sequence[tuple[Any, Any]], optimizer: Optimizer) -> list[float]:
        self.set_mode(True)
        return train(self.module, [(self.array(inputs), self.array(targets)) for inputs, targets in batches], optimizer)

    def state(self) -> Arrays:
        return {name: as_numpy(tensor).copy() for name, tensor in self.module.state_dict().items()}

    def load(self, state: Arrays) -> None:
        """Takes some or all parameters and statistics, by copies."""
        tensors = self.module.state_dict()
        for name, array in state.items():
            tensors[name].copy_(torch.from_numpy(np.array(array)))

    def set_mode(self, train: bool) -> None:
        """Train or eval mode; dropout stays off, since its masks cannot correspond."""
        self.module.train(train)
        for child in self.module.modules():
            if isinstance(child, Dropout):
                child.eval()

    def forward(self, inputs: Any) -> Any:
        """The network's output for tensors: one, a tuple of arguments or a dict of named ones."""
        positional, named = arguments_of(inputs)
        modes = {name: value == self.module.training for name, value in self.mode_arguments(inputs).items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.module(*positional, **named, **modes)

    def computes_alike_in_both_modes(self, inputs: Any) -> bool:
        runs = [self.run(inputs, train=train) for train in (False, True)]
        values = [{**run.activations, **run.outputs} for run in runs]
        return values[0].keys() == values[1].keys() and all(
            np.array_equal(value, values[1][name], equal_nan=value.dtype.kind in "fc")
            for name, value in values[0].items()
        )

    def output_shapes(self, inputs: Any) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.run(inputs, train=False, record=False).outputs.items()}

    def run(
        self,
        inputs: Any,
        targets: Any = None,
        loss: Loss | None = None,
        *,
        train: bool,
        activation_gradients: bool = False,
        arrangement: Arrangement = PLAIN,
        record: bool = True,
    ) -> Run:
        """A pass over inputs in PyTorch's layout, and one back where there is a loss; the network is left unchanged."""
        statistics = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        self.set_mode(train)
        differentiate = loss is not None
        size = batch_size(inputs)
        order = np.arange(size)
        if arrangement.permutation_seed is not None:
            order = np.random.default_rng(arrangement.permutation_seed).permutation(size)
        back = np.argsort(order)
        tensors = {
            name: self._arranged(array, arrangement, order).requires_grad_(
                differentiate and np.asarray(array).dtype.kind in "fc"
            )
            for name, array in named_arrays(inputs).items()
        }
        if arrangement.channels_last and any(tensor.ndim == 4 for tensor in tensors.values()):
            self.module.to(memory_format=torch.channels_last)
        gradients_of_outputs: dict[str, torch.Tensor] | None = {} if differentiate and activation_gradients else None

        def in_order(value: Any, _name: str = "") -> Any:
            permuted = arrangement.permutation_seed is not None and isinstance(value, torch.Tensor) and value.ndim
            if permuted and len(value) and len(value) % size == 0:
                return value.unflatten(0, (size, -1))[back].flatten(0, 1)
            return value

        try:
            with (
                recording_torch(self.module if record else torch.nn.Identity(), gradients_of_outputs) as recorder,
                torch.set_grad_enabled(differentiate),
            ):
                outputs = map_output(in_order, self.forward(with_arrays(inputs, tensors)))
            result = Run(
                outputs={name: _numpy(value) for name, value in flatten_output(outputs, OUTPUT).items()},
                activations={name: _numpy(in_order(value)) for name, value in recorder.outputs.items()},
                statistics={name: as_numpy(buffer).copy() for name, buffer in self.module.named_buffers()},
            )
            if loss is not None:
                value = require_scalar(loss.torch(outputs, self.array(targets)), "PyTorch")
                value.backward()
                result.loss = value.item()
                result.gradients = {
                    name: _numpy(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
                    for name, parameter in self.module.named_parameters()
                    if parameter.requires_grad
                }
                for name, tensor in tensors.items():
                    if tensor.requires_grad:
                        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                        result.gradients[f"{INPUTS}.{name}" if name else INPUTS] = _numpy(in_order(gradient))
                result.activation_gradients = {
                    name: _numpy(in_order(gradient)) for name, gradient in (gradients_of_outputs or {}).items()
                }
            return result
        finally:
            self.module.zero_grad(set_to_none=True)
            for name, buffer in self.module.named_buffers():
                buffer.copy_(statistics[name])
            if arrangement.channels_last:
                self.module.to(memory_format=torch.contiguous_format)

    def _arranged(self, array: Any, arrangement: Arrangement, order: np.ndarray) -> torch.Tensor:
        """An array of the inputs as a tensor in this arrangement; one without the batch's axis is not permuted."""
        array = _jittered(np.asarray(array), arrangement.noise_seed, self.dtype)
        tensor = self.array(array[order] if array.ndim and len(array) == len(order) else array)
        if arrangement.channels_last and tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def batch_size(inputs: Any) -> int:
    """The length of the first axis of the first array that has one."""
    return next((len(array) for array in named_arrays(inputs).values() if np.ndim(array)), 1)


def _numpy(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor):  # a number of Python's among the outputs
        return tensor
    if tensor.is_complex():
        return tensor.detach().resolve_conj().cpu().numpy().astype(np.complex128)
    return as_numpy(tensor).astype(np.float64, copy=False) if tensor.is_floating_point() else as_numpy(tensor).copy()


def _jittered(inputs: np.ndarray, seed: int | None, dtype: torch.dtype) -> np.ndarray:
    """The inputs, each moved by one unit in the last place, up or down."""
    if seed is None or not np.issubdtype(inputs.dtype, np.floating):
        return inputs
    inputs = inputs.astype(np.float64 if dtype is torch.float64 else np.float32)
    up = np.random.default_rng(seed).random(inputs.shape) < 0.5
    return np.nextafter(inputs, np.where(up, np.inf, -np.inf).astype(inputs.dtype))
