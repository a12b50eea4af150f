"""One network on each side of the comparison, run the same way and answering in the same terms."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.utils import _pytree

from parity.convert import as_numpy
from parity.naming import Leaf, ParityError, leaves
from parity.recording import flatten_output, recording_flax, recording_torch

Arrays = dict[str, np.ndarray]
INPUTS, OUTPUT = "(inputs)", "output"
Loss = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
"""The same loss twice, (outputs, targets) -> scalar: in JAX and in PyTorch."""


@dataclass
class Run:
    """What one pass through a network gave, by PyTorch's names.

    Gradients and statistics are in PyTorch's layout; outputs, activations and the inputs' gradient in the side's own.
    """

    outputs: Arrays
    activations: Arrays
    statistics: Arrays
    gradients: Arrays = field(default_factory=dict)
    loss: float = float("nan")

    def groups(self) -> dict[str, Arrays]:
        return {name: value for name, value in vars(self).items() if isinstance(value, dict)}


@dataclass(frozen=True)
class Arrangement:
    """A way for PyTorch to compute the same thing with other rounding."""

    name: str
    channels_last: bool = False
    permutation_seed: int | None = None
    noise_seed: int | None = None


PLAIN = Arrangement("plain")
ARRANGEMENTS = (
    PLAIN,
    Arrangement("channels last", channels_last=True),
    Arrangement("permuted batch", permutation_seed=0),
    Arrangement("input moved by one ulp", noise_seed=0),
    Arrangement("all three", channels_last=True, permutation_seed=1, noise_seed=1),
)


def channels_first(array: Any) -> Any:
    """(N, *space, C) as (N, C, *space), for two or more spatial axes; anything else as it is."""
    return np.moveaxis(np.asarray(array), -1, 1) if np.ndim(array) >= 4 else np.asarray(array)


def like_torch(ours: Run, theirs: Run) -> Run:
    """Flax's run with outputs, activations and the inputs' gradient ordered and laid out as their counterparts."""
    inputs = _like_torch({name: value for name, value in ours.gradients.items() if name == INPUTS}, theirs.gradients)
    return replace(
        ours,
        outputs=_like_torch(ours.outputs, theirs.outputs),
        activations=_like_torch(ours.activations, theirs.activations),
        gradients=ours.gradients | inputs,
    )


def _like_torch(ours: Arrays, theirs: Arrays) -> Arrays:
    """Activations that both sides have, in PyTorch's order and layout, which the shapes tell."""

    def moved(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if array.ndim < 3:
            return array
        candidate = np.moveaxis(array, -1, 1)
        return candidate if candidate.shape == shape and (array.ndim >= 4 or array.shape != shape) else array

    return {name: moved(ours[name], array.shape) for name, array in theirs.items() if name in ours}


def default_loss(targets: np.ndarray | Arrays) -> Loss:
    """Cross-entropy for integer targets, otherwise the mean squared difference, summed over the outputs."""
    if not isinstance(targets, dict) and np.issubdtype(np.asarray(targets).dtype, np.integer):

        def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
            log_probabilities = jax.nn.log_softmax(_at_least_float32(outputs))
            return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1).mean()

        return cross_entropy, lambda outputs, labels: torch.nn.functional.cross_entropy(_float(outputs), labels)

    def flax_loss(outputs: Any, wanted: Any) -> jax.Array:
        outputs, wanted = flatten_output(outputs), flatten_output(wanted)
        errors = [jnp.square(_at_least_float32(outputs[name]) - wanted[name]).mean() for name in outputs]
        return jnp.stack(errors).sum()

    def torch_loss(outputs: Any, wanted: Any) -> torch.Tensor:
        outputs, wanted = flatten_output(outputs), flatten_output(wanted)
        return torch.stack([(_float(outputs[name]) - wanted[name]).square().mean() for name in outputs]).sum()

    return flax_loss, torch_loss


def _at_least_float32(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


class TorchSide:
    """A private copy of a PyTorch network in one precision: "float64", "float32", or "bfloat16" (autocast)."""

    def __init__(self, module: torch.nn.Module, precision: str, device: str = "cpu"):
        self.precision, self.device = precision, torch.device(device)
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.module = copy.deepcopy(module).to(self.device, self.dtype)

    def tensor(self, array: Any) -> Any:
        """A copy of an array (or of a dict of them) on the device; floats in the run's dtype."""
        if isinstance(array, Mapping):
            return {name: self.tensor(value) for name, value in array.items()}
        tensor = torch.tensor(np.ascontiguousarray(array), device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor.long()

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
            if isinstance(child, torch.nn.modules.dropout._DropoutNd):
                child.eval()

    def forward(self, inputs: torch.Tensor) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.module(inputs)

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
        x = self.tensor(_jittered(inputs, arrangement.noise_seed, self.dtype)[order])
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
                outputs = _pytree.tree_map(in_order, self.forward(x))
            result = Run(
                outputs={name: _numpy(value) for name, value in flatten_output(outputs, OUTPUT).items()},
                activations={name: _numpy(in_order(value)) for name, value in recorder.outputs.items()},
                statistics={name: as_numpy(buffer).copy() for name, buffer in self.module.named_buffers()},
            )
            if loss is not None:
                value = require_scalar(loss[1](outputs, self.tensor(targets)), "PyTorch")
                value.backward()
                result.loss = value.item()
                result.gradients = {
                    name: _numpy(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
                    for name, parameter in self.module.named_parameters()
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


def _jittered(inputs: np.ndarray, seed: int | None, dtype: torch.dtype) -> np.ndarray:
    """The inputs, each moved by one unit in the last place, up or down."""
    if seed is None or not np.issubdtype(inputs.dtype, np.floating):
        return inputs
    inputs = inputs.astype(np.float64 if dtype is torch.float64 else np.float32)
    up = np.random.default_rng(seed).random(inputs.shape) < 0.5
    return np.nextafter(inputs, np.where(up, np.inf, -np.inf).astype(inputs.dtype))


def require_scalar(loss: Any, side: str) -> Any:
    """`loss`, if it is one number."""
    if getattr(loss, "shape", None) != ():
        found = f"shape {tuple(loss.shape)}" if hasattr(loss, "shape") else f"a {type(loss).__name__}"
        raise ParityError(f"the loss must be a scalar, but the one for {side} returned {found}: take its mean")
    return loss


class FlaxSide:
    """A private copy of an NNX network in one precision, as a pure function of its parameters and statistics.

    Attributes:
        values: {PyTorch name: array in Flax's layout}, every parameter and statistic.
    """

    def __init__(self, model: nnx.Module, precision: str, names: Mapping[str, str] | None = None):
        self.precision = precision
        self.dtype = jnp.float64 if precision == "float64" else jnp.float32
        self.names = dict(names or {})
        self._model = at_precision(nnx.clone(model), precision)
        self.leaves: dict[str, Leaf] = {}
        for leaf in leaves(self._model, self.names):
            if not any(leaf.variable is other.variable for other in self.leaves.values()):
                self.leaves[leaf.torch_name] = leaf
        self.parameters = [name for name, leaf in self.leaves.items() if isinstance(leaf.variable, nnx.Param)]
        self.values = {name: leaf.variable.get_value() for name, leaf in self.leaves.items()}
        self._compiled: dict[tuple[bool, int | None], Callable] = {}

    def take(self, model: nnx.Module) -> None:
        """Takes the parameters and statistics of a model that `self.model` gave."""
        values = {leaf.torch_name: leaf.variable.get_value() for leaf in leaves(model, self.names)}
        self.values = {name: values[name] for name in self.values}

    def load(self, state: Arrays) -> None:
        """Takes parameters and statistics from a PyTorch state_dict, by copies."""
        self.values |= self.from_torch_layout(state)

    def from_torch_layout(self, arrays: Arrays) -> dict[str, jax.Array]:
        """Parameters, or anything shaped like them, in Flax's layout and this network's precision, by copies."""
        return {
            name: jnp.array(self.leaves[name].rule.to_flax(array), dtype=self.values[name].dtype)
            for name, array in arrays.items()
            if name in self.leaves
        }

    def state(self, values: Mapping[str, jax.Array] | None = None) -> Arrays:
        """`values` (by default this network's own) in PyTorch's layout."""
        values = self.values if values is None else values
        return {name: np.array(self.leaves[name].rule.to_torch(np.asarray(value))) for name, value in values.items()}

    def array(self, array: Any) -> Any:
        if isinstance(array, Mapping):
            return {name: self.array(value) for name, value in array.items()}
        array = np.asarray(array)
        return jnp.array(array, dtype=self.dtype if np.issubdtype(array.dtype, np.floating) else None)

    def model(self, values: Mapping[str, jax.Array] | None = None, *, train: bool) -> nnx.Module:
        """A new module with these values, in that mode; dropout stays off."""
        model = nnx.clone(self._model)
        model.train() if train else model.eval()
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.Dropout):
                module.deterministic = True
        values = self.values if values is None else values
        for leaf in leaves(model, self.names):
            if leaf.torch_name in values:
                leaf.variable.set_value(values[leaf.torch_name])
        return model

    def _pass(self, train: bool, loss: Callable | None) -> Callable:
        """The compiled pass, and one back where there is a loss."""
        key = train, id(loss) if loss else None
        if key in self._compiled:
            return self._compiled[key]
        graphdef, state = nnx.split(self.model(train=train))

        def forward(parameters, statistics, inputs, targets):
            model = nnx.merge(graphdef, state, copy=True)
            ours = {leaf.torch_name: leaf.variable for leaf in leaves(model, self.names)}
            values = parameters | statistics
            for name, value in values.items():
                ours[name].set_value(value)
            with recording_flax(model) as recorder:
                outputs = model(inputs)
            value = require_scalar(loss(outputs, targets), "JAX") if loss else 0.0
            after = {name: ours[name].get_value() for name in statistics}
            return value, (flatten_output(outputs, OUTPUT), recorder.outputs, after)

        if loss is None:
            compiled = jax.jit(lambda *arguments: (forward(*arguments), ({}, None)))
        else:
            compiled = jax.jit(self._with_gradients(forward))
        # The loss is kept alive with its entry, so that no other can get its id.
        self._compiled[key] = lambda *arguments, _loss=loss: compiled(*arguments)
        return self._compiled[key]

    @staticmethod
    def _with_gradients(forward: Callable) -> Callable:
        def run(parameters, statistics, inputs, targets):
            argnums = (0, 2) if _is_float(inputs.dtype) else (0,)
            result, gradients = jax.value_and_grad(forward, argnums=argnums, has_aux=True)(
                parameters, statistics, inputs, targets
            )
            return result, (*gradients, None)[:2]

        return run

    def run(self, inputs: np.ndarray, targets: Any = None, loss: Loss | None = None, *, train: bool) -> Run:
        """A pass over inputs in Flax's layout, and one back where there is a loss; `values` are left unchanged."""
        parameters, statistics = self.parts()
        (value, (outputs, activations, after)), (gradients, input_gradient) = self._pass(train, loss and loss[0])(
            parameters, statistics, self.array(inputs), None if targets is None else self.array(targets)
        )
        wide = lambda arrays: {name: _wide(array) for name, array in arrays.items()}  # noqa: E731
        return Run(
            outputs=wide(outputs),
            activations={self.torch_path(name): array for name, array in wide(activations).items()},
            statistics=self.state(after),
            loss=float(value) if loss else float("nan"),
            gradients=self.state(gradients) | ({} if input_gradient is None else {INPUTS: _wide(input_gradient)}),
        )

    def record(self, inputs: np.ndarray, *, train: bool) -> tuple[Arrays, Arrays]:
        """First inputs and outputs of every submodule in a forward pass, by PyTorch's path, in Flax's layout."""
        graphdef, state = nnx.split(self.model(train=train))

        def forward(state, x):
            model = nnx.merge(graphdef, state, copy=True)
            with recording_flax(model) as recorder:
                model(x)
            return {k: v for k, v in recorder.inputs.items() if isinstance(v, jax.Array)}, recorder.outputs

        taken, given = jax.jit(forward)(state, self.array(inputs))
        return (
            {self.torch_path(name): _wide(array) for name, array in taken.items()},
            {self.torch_path(name): _wide(array) for name, array in given.items()},
        )

    def output_shapes(self, inputs: np.ndarray) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs in eval mode; nothing is computed."""
        _, (outputs, _, _) = jax.eval_shape(self._pass(False, None), *self.parts(), self.array(inputs), None)[0]
        return {name: array.shape for name, array in outputs.items()}

    def parts(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Parameters, and everything else."""
        parameters = {name: self.values[name] for name in self.parameters}
        return parameters, {name: value for name, value in self.values.items() if name not in parameters}

    def torch_path(self, path: str) -> str:
        for theirs in sorted(self.names, key=len, reverse=True):
            if path == theirs or path.startswith((theirs + ".", theirs + "#")):
                return self.names[theirs] + path[len(theirs) :]
        return path


def _wide(array: jax.Array) -> np.ndarray:
    return np.asarray(array).astype(np.float64) if _is_float(array.dtype) else np.array(array)


def at_precision(model: nnx.Module, precision: str) -> nnx.Module:
    """Changes a module's parameters, statistics and compute dtype in place; bfloat16 keeps float32 parameters."""
    dtype = jnp.float64 if precision == "float64" else jnp.float32
    compute = jnp.bfloat16 if precision == "bfloat16" else dtype
    for _, module in nnx.iter_modules(model):
        for attribute, value in (("dtype", compute), ("param_dtype", dtype)):
            if hasattr(module, attribute):
                setattr(module, attribute, value)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable) and _is_float(variable.dtype):
            variable.set_value(jnp.array(variable.get_value(), dtype))
    return model
