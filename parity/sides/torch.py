"""PyTorch's network, run in several arrangements that mean the same."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from parity.conversion.convert import as_numpy
from parity.errors import ParityError
from parity.sides import dropout
from parity.sides.arguments import arguments_of, map_arrays, mode_arguments, named_arrays, with_arrays
from parity.sides.base import (
    ARRANGEMENTS,
    INPUTS,
    OUTPUT,
    PLAIN,
    AnsweredByRunning,
    Arrangement,
    Arrays,
    Loss,
    Run,
    Train,
    arranged,
    in_order,
)
from parity.sides.losses import require_scalar
from parity.sides.optimizers import Optimizer
from parity.sides.recording import flatten_output, map_output, recording_torch
from parity.sides.torch_private import Dropout
from parity.sides.trainers import TorchTrainer

STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


class TorchSide(AnsweredByRunning):
    """A private copy of a PyTorch network in one precision: "float64", "float32", or "bfloat16" (autocast)."""

    framework, channels, arrangements = "PyTorch", 1, ARRANGEMENTS[1:]

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

    def at(self, precision: str) -> "TorchSide":
        """The same network, with the values that it has now, in another precision."""
        return TorchSide(self.module, precision, str(self.device))

    def twin(self) -> "TorchSide":
        """The same network for passes at the same time as this one's: it shares the parameters' memory."""
        shared = {
            id(parameter): torch.nn.Parameter(parameter.detach(), parameter.requires_grad)
            for parameter in self.module.parameters()
        }
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module, shared)
        return twin

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
    def constants(self) -> set[str]:
        return constants(self.module)

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

    def _statistics(self) -> Arrays:
        """The buffers that belong to the state; others, such as a fixed filter's, are constants of the network."""
        state = self.module.state_dict()
        return {name: as_numpy(buffer).copy() for name, buffer in self.module.named_buffers() if name in state}

    def load(self, state: Arrays) -> None:
        """Takes some or all parameters and statistics, by copies; what only the other side has is passed over."""
        tensors = self.module.state_dict()
        for name, array in state.items():
            if name in tensors:
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

    def calls(self, inputs: Any) -> list[str]:
        """The submodules' paths in the order in which their calls end in eval mode."""
        self.set_mode(False)
        with torch.no_grad(), recording_torch(self.module) as recorder:
            self.forward(self.array(inputs))
        return list(recorder.arguments)

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
        given, back = arranged(inputs, arrangement, np.float64 if self.precision == "float64" else np.float32)

        def tensor_of(array: np.ndarray) -> torch.Tensor:
            tensor = self.array(array)
            if arrangement.channels_last and tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            return tensor.requires_grad_(differentiate and (tensor.is_floating_point() or tensor.is_complex()))

        tensors = {name: tensor_of(array) for name, array in named_arrays(given).items()}
        if arrangement.channels_last and any(tensor.ndim == 4 for tensor in tensors.values()):
            self.module.to(memory_format=torch.channels_last)
        gradients_of_outputs: dict[str, torch.Tensor] | None = {} if differentiate and activation_gradients else None
        recorded = self.module if record else torch.nn.Identity()

        try:
            with (
                recording_torch(recorded, gradients_of_outputs, outputs_only=True) as recorder,
                torch.set_grad_enabled(differentiate),
            ):
                outputs = map_output(lambda value, _: in_order(value, back), self.forward(with_arrays(inputs, tensors)))
            result = Run(
                outputs={name: _numpy(value) for name, value in flatten_output(outputs, OUTPUT).items()},
                activations={name: _numpy(in_order(value, back)) for name, value in recorder.outputs.items()},
                statistics=self._statistics(),
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
                        result.gradients[f"{INPUTS}.{name}" if name else INPUTS] = _numpy(in_order(gradient, back))
                result.activation_gradients = {
                    name: _numpy(in_order(gradient, back)) for name, gradient in (gradients_of_outputs or {}).items()
                }
            return result
        finally:
            self.module.zero_grad(set_to_none=True)
            for name, buffer in self.module.named_buffers():
                buffer.copy_(statistics[name])
            if arrangement.channels_last:
                self.module.to(memory_format=torch.contiguous_format)


def constants(module: torch.nn.Module) -> set[str]:
    """Buffers that are saved though no pass changes them, such as masks and tables of positions."""
    state = module.state_dict()
    return {name for name, _ in module.named_buffers() if name in state and name.rpartition(".")[2] not in STATISTICS}


def _numpy(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor):  # a number of Python's among the outputs
        return tensor
    if tensor.is_complex():
        return tensor.detach().resolve_conj().cpu().numpy().astype(np.complex128)
    return as_numpy(tensor).astype(np.float64, copy=False) if tensor.is_floating_point() else as_numpy(tensor).copy()
