"""A network in JAX, as a compiled function of its parameters and statistics."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.conversion.naming import Leaf, leaves, renamed
from parity.conversion.trees import Tree, is_tree
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
from parity.sides.linen import called
from parity.sides.losses import require_scalar
from parity.sides.optimizers import Optimizer
from parity.sides.recording import flatten_output, recording_flax
from parity.sides.trainers import FlaxTrainer


class FlaxSide:
    """A private copy of an NNX network in one precision, as a pure function of its parameters and statistics.

    A Linen network and a function of a parameter tree come as the modules that `parity.conversion.trees` makes of them.

    Attributes:
        values: {PyTorch name: array in Flax's layout}, every parameter and statistic.
        parameters: the names of those that are an `nnx.Param`.
    """

    framework, channels = "Flax", -1
    # In JAX nothing is stored with the channels second, so that there is no other memory format to compute in.
    arrangements = tuple(replace(one, channels_last=False) for one in ARRANGEMENTS[1:] if one.name != "channels last")

    def __init__(
        self,
        model: nnx.Module,
        precision: str,
        names: Mapping[str, str] | None = None,
        torch_names: Collection[str] = (),
    ):
        """A variable with several names goes by the one that is among `torch_names`."""
        self.precision, self.device = precision, jax.devices()[0].device_kind
        self.dtype = jnp.float64 if precision == "float64" else jnp.float32
        self.names = dict(names or {})
        if isinstance(model, Tree | nnx.bridge.ToNNX):
            self.framework = "JAX" if isinstance(model, Tree) else "Linen"
        with self.arithmetic():
            self._model = at_precision(nnx.clone(model), precision)
        self.leaves: dict[str, Leaf] = {}
        for leaf in sorted(leaves(self._model, self.names), key=lambda leaf: leaf.torch_name not in torch_names):
            if not any(leaf.variable is other.variable for other in self.leaves.values()):
                self.leaves[leaf.torch_name] = leaf
        self.parameters = [name for name, leaf in self.leaves.items() if isinstance(leaf.variable, nnx.Param)]
        self.values = {name: leaf.value() for name, leaf in self.leaves.items()}
        self._compiled: dict[tuple[bool, int | None], Callable] = {}

    def arithmetic(self) -> AbstractContextManager:
        """In which this network computes: with float64 where that is its precision, whatever the other side's is."""
        return jax.enable_x64(self.precision == "float64")

    @property
    def trained(self) -> list[str]:
        return self.parameters

    @property
    def takes_tokens(self) -> bool:
        """Whether it looks integers up; a network whose layers are unknown may."""
        return any(isinstance(part, nnx.Embed) or is_tree(part) for _, part in nnx.iter_modules(self._model))

    @property
    def has_train_mode(self) -> bool:
        """Whether anything depends on the mode: a network without statistics computes the same in both."""
        if isinstance(self._model, Tree):  # a pure function
            return False
        has_norms = any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(self._model))
        return has_norms or bool(self.parts()[1])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: leaf.torch_shape for name, leaf in self.leaves.items()}

    def step_floors(self, step: int) -> dict[str, dict[str, float]]:
        return {}

    def trainer(self, optimizer: Optimizer) -> FlaxTrainer:
        return FlaxTrainer(self, optimizer)

    def train_with(self, train: Train, batches: Sequence[tuple[Any, Any]], optimizer: Optimizer) -> list[float]:
        """The losses of a training loop that is given the model itself, and its trained values taken over."""
        model = self.model(train=True)
        losses = train(model, [(self.array(inputs), self.array(targets)) for inputs, targets in batches], optimizer)
        values = {leaf.torch_name: leaf.value() for leaf in leaves(model, self.names)}
        self.values = {name: values[name] for name in self.values}
        return losses

    def load(self, state: Arrays) -> None:
        """Takes parameters and statistics from a PyTorch state_dict, by copies."""
        with self.arithmetic():
            self.values |= self.from_torch_layout(state)

    def from_torch_layout(self, arrays: Arrays) -> dict[str, Any]:
        """Parameters, or anything shaped like them, in Flax's layout and this network's precision, by copies."""
        return {
            name: jax.tree.map(
                lambda part, value: jnp.array(part, dtype=value.dtype),
                self.leaves[name].rule.to_flax(array),
                self.values[name],
            )
            for name, array in arrays.items()
            if name in self.leaves
        }

    def state(self, values: Mapping[str, Any] | None = None) -> Arrays:
        """`values` (by default this network's own) in PyTorch's layout."""
        values = self.values if values is None else values
        return {
            name: np.array(self.leaves[name].rule.to_torch(jax.tree.map(np.asarray, value)))
            for name, value in values.items()
        }

    def array(self, array: Any) -> Any:
        if isinstance(array, Mapping):
            return {name: self.array(value) for name, value in array.items()}
        array = np.asarray(array)
        return jnp.array(array, dtype=self.dtype if np.issubdtype(array.dtype, np.floating) else None)

    def model(self, values: Mapping[str, Any] | None = None, *, train: bool) -> nnx.Module:
        """A new module with these values, in that mode; dropout stays off."""
        model = nnx.clone(self._model)
        model.train() if train else model.eval()
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.Dropout):
                module.deterministic = True
        values = self.values if values is None else values
        for leaf in leaves(model, self.names):
            if leaf.torch_name in values:
                leaf.set_value(values[leaf.torch_name])
        return model

    def _pass(self, train: bool, loss: Callable | None) -> Callable:
        """The compiled pass, and one back where there is a loss."""
        key = train, id(loss) if loss else None
        if key in self._compiled:
            return self._compiled[key]
        graphdef, state = nnx.split(self.model(train=train))
        names = self.names  # without `self`, which then goes with its arrays as soon as nothing else holds it

        def forward(parameters, statistics, inputs, targets, back):
            model = nnx.merge(graphdef, state, copy=True)
            ours = {leaf.torch_name: leaf for leaf in leaves(model, names)}
            values = parameters | statistics
            for name, value in values.items():
                ours[name].set_value(value)
            with recording_flax(model) as recorder:
                outputs = in_order(called(model, inputs, train=train), back)
            value = require_scalar(loss(outputs, targets), "JAX") if loss else 0.0
            after = {name: ours[name].value() for name in statistics}
            return value, (flatten_output(outputs, OUTPUT), in_order(recorder.outputs, back), after)

        if loss is None:
            compiled = jax.jit(lambda *arguments: (forward(*arguments), ({}, None)))
        else:
            compiled = jax.jit(self._with_gradients(forward))
        # The loss is kept alive with its entry, so that no other can get its id.
        self._compiled[key] = lambda *arguments, _loss=loss: compiled(*arguments)
        return self._compiled[key]

    @staticmethod
    def _with_gradients(forward: Callable) -> Callable:
        def run(parameters, statistics, inputs, targets, back):
            argnums = (0, 2) if _is_float(inputs.dtype) else (0,)
            result, gradients = jax.value_and_grad(forward, argnums=argnums, has_aux=True)(
                parameters, statistics, inputs, targets, back
            )
            return result, (*gradients, None)[:2]

        return run

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
        """A pass over inputs in Flax's layout, and one back where there is a loss; `values` are left unchanged."""
        parameters, statistics = self.parts()
        order = back = None
        if arrangement.permutation_seed is not None:
            order = np.random.default_rng(arrangement.permutation_seed).permutation(len(inputs))
            back = np.argsort(order)
        inputs = jittered(inputs, arrangement.noise_seed, self.dtype)
        with self.arithmetic():
            (value, (outputs, activations, after)), (gradients, input_gradient) = self._pass(train, loss and loss.jax)(
                parameters,
                statistics,
                self.array(inputs if order is None else inputs[order]),
                None if targets is None else self.array(targets),
                back,
            )
            input_gradient = in_order(input_gradient, back)
        wide = lambda arrays: {name: _wide(array) for name, array in arrays.items()}  # noqa: E731
        return Run(
            outputs=wide(outputs),
            activations={self.torch_path(name): array for name, array in wide(activations if record else {}).items()},
            statistics=self.state(after),
            loss=float(value) if loss else float("nan"),
            gradients=self.state(gradients) | ({} if input_gradient is None else {INPUTS: _wide(input_gradient)}),
        )

    def submodule_inputs(self, inputs: np.ndarray, *, train: bool) -> Arrays:
        """The input of every submodule that takes one array, in a forward pass, by PyTorch's path, in Flax's layout."""
        graphdef, state = nnx.split(self.model(train=train))

        def forward(state, x):
            model = nnx.merge(graphdef, state, copy=True)
            with recording_flax(model) as recorder:
                called(model, x, train=train)
            return {name: value for name, value in recorder.inputs.items() if isinstance(value, jax.Array)}

        taken = jax.jit(forward)(state, self.array(inputs))
        return {self.torch_path(name): _wide(array) for name, array in taken.items()}

    def output_shapes(self, inputs: np.ndarray) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs in eval mode; nothing is computed."""
        with self.arithmetic():
            arguments = *self.parts(), self.array(inputs), None, None
            _, (outputs, _, _) = jax.eval_shape(self._pass(False, None), *arguments)[0]
        return {name: array.shape for name, array in outputs.items()}

    def parts(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Parameters, and everything else."""
        parameters = {name: self.values[name] for name in self.parameters}
        return parameters, {name: value for name, value in self.values.items() if name not in parameters}

    def torch_path(self, path: str) -> str:
        return renamed(path, self.names)


def in_order(values: Any, back: np.ndarray | None) -> Any:
    """Arrays whose first axis, or the first part of it, is a permuted batch, put back; any others as they are."""
    if back is None:
        return values
    size = len(back)

    def one(array: jax.Array) -> jax.Array:
        if not array.ndim or len(array) % size:
            return array
        return array.reshape(size, -1, *array.shape[1:])[back].reshape(array.shape)

    return jax.tree.map(one, values)


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


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
        if precision == "float64" and getattr(module, "attention_fn", None) is nnx.dot_product_attention:
            setattr(module, "attention_fn", _attention_in_its_own_dtype)  # noqa: B010
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable) and _is_float(variable.dtype):
            variable.set_value(jnp.array(variable.get_value(), dtype))
    return model


def _attention_in_its_own_dtype(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
    """`nnx.dot_product_attention` without the shortcut through `jax.nn`, whose softmax is in float32 for any input.

    The shortcut is for attention without dropout; a rate that `deterministic` keeps from being used avoids it.
    """
    options |= {"dropout_rate": 0.5, "deterministic": True}
    return nnx.dot_product_attention(query, key, value, **options)
