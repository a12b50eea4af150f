"""PyTorch's network, run in several arrangements that mean the same."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.conversion.convert import as_numpy
from parity.errors import ParityError
from parity.sides.base import (
    ARRANGEMENTS,
    INPUTS,
    OUTPUT,
    PLAIN,
    Arrangement,
    Arrays,
    Loss,
    Run,
    Train,
    jittered,
)
from parity.sides.losses import require_scalar
from parity.sides.optimizers import Optimizer
from parity.sides.recording import flatten_output, recording_torch
from parity.sides.torch_private import Dropout, tree_map
from parity.sides.trainers import TorchTrainer


class TorchSide:
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
            self.module.to(self.device, self.dtype)
        except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
            raise ParityError(f"PyTorch cannot compute on {device!r}: {str(error).splitlines()[0]}") from error

    def array(self, array: Any) -> Any:
        """A copy of an array (or of a dict of them) on the device; floats in the run's dtype."""
        if isinstance(array, Mapping):
            return {name: self.array(value) for name, value in array.items()}
        tensor = torch.tensor(np.ascontiguousarray(array), device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor.long()

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

    def step_floors(self, step: int) -> dict[str, dict[str, float]]:
        return {}

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

    def forward(self, inputs: torch.Tensor) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.module(inputs)

    def output_shapes(self, inputs: np.ndarray) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.run(inputs, train=False, record=False).outputs.items()}

    def run(
        self,
        inputs: np.ndarray,
        targets: Any = None,
        loss: Loss | None = None,
        *,
        train: bool,
        arrangement: Arrangement = PLAIN,
        record: bool = True,
    ) -> Run:
        """A pass over inputs in PyTorch's layout, and one back where there is a loss; the network is left unchanged."""
        statistics = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        self.set_mode(train)
        order = np.arange(len(inputs))
        if arrangement.permutation_seed is not None:
            order = np.random.default_rng(arrangement.permutation_seed).permutation(len(inputs))
        back = np.argsort(order)
        wide = np.float64 if self.precision == "float64" else np.float32
        x = self.array(jittered(inputs, arrangement.noise_seed, wide)[order])
        if arrangement.channels_last and x.ndim == 4:
            self.module.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        differentiate = loss is not None
        x.requires_grad_(differentiate and x.is_floating_point())

        def in_order(value: Any) -> Any:
            permuted = arrangement.permutation_seed is not None and isinstance(value, torch.Tensor) and value.ndim
            if permuted and len(value) % len(back) == 0:
                return value.unflatten(0, (len(back), -1))[back].flatten(0, 1)
            return value

        try:
            with (
                recording_torch(self.module if record else torch.nn.Identity()) as recorder,
                torch.set_grad_enabled(differentiate),
            ):
                outputs = tree_map(in_order, self.forward(x))
            result = Run(
                outputs={name: _numpy(value) for name, value in flatten_output(outputs, OUTPUT).items()},
                activations={name: _numpy(in_order(value)) for name, value in recorder.outputs.items()},
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
                if x.grad is not None:
                    result.gradients[INPUTS] = _numpy(in_order(x.grad))
            return result
        finally:
            self.module.zero_grad(set_to_none=True)
            for name, buffer in self.module.named_buffers():
                buffer.copy_(statistics[name])
            if arrangement.channels_last:
                self.module.to(memory_format=torch.contiguous_format)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return as_numpy(tensor).astype(np.float64, copy=False) if tensor.is_floating_point() else as_numpy(tensor).copy()
