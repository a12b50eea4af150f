"""A network in JAX, as a compiled function of its parameters and statistics."""

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.conversion.naming import Leaf, leaves, named_modules, renamed
from parity.conversion.trees import Tree, is_tree
from parity.errors import ParityError
from parity.sides import dropout
from parity.sides.arguments import map_arrays, named_arrays, with_arrays
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
    arranged,
    in_order,
)
from parity.sides.linen import called, modes_of
from parity.sides.losses import require_scalar
from parity.sides.optimizers import Optimizer
from parity.sides.recording import flatten_output, map_output, recording_flax
from parity.sides.trainers import FlaxTrainer


class FlaxSide:
    """A private copy of an NNX network in one precision, as a pure function of its parameters and statistics.

    A Linen network and a function of a parameter tree come as the modules that `parity.conversion.trees` makes of them.

    Attributes:
        values: {PyTorch name: array in Flax's layout}, every parameter and statistic.
        parameters: the names of those that are an `nnx.Param`.
    """

    framework, channels = "Flax", -1
    constants: Collection[str] = ()  # whatever Flax holds may change
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
        dropout.turn_off(module for _, module in named_modules(self._model))
        self.leaves: dict[str, Leaf] = {}
        for leaf in sorted(leaves(self._model, self.names), key=lambda leaf: leaf.torch_name not in torch_names):
            if any(leaf.variable is other.variable for other in self.leaves.values()):
                continue
            if other := self.leaves.get(leaf.torch_name):
                raise ParityError(
                    f"{other.path} and {leaf.path} of the {self.framework} network both meet PyTorch's "
                    f"{leaf.torch_name}: names= gives each a path of its own"
                )
            self.leaves[leaf.torch_name] = leaf
        self.parameters = [name for name, leaf in self.leaves.items() if leaf.is_parameter]
        self.values = {name: leaf.value() for name, leaf in self.leaves.items()}
        self._compiled: dict[tuple, Callable] = {}

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

    def at(self, precision: str) -> "FlaxSide":
        """The same network, with the values that it has now, in another precision."""
        return FlaxSide(self.model(train=False), precision, self.names, self.leaves)

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
                lambda part, value: on_device(part, value.dtype),
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
            name: np.array(self.leaves[name].rule.to_torch(jax.tree.map(np.asarray, value)), order="C")
            for name, value in values.items()
        }

    def array(self, array: Any) -> Any:
        def converted(value: Any) -> jax.Array:
            value = np.asarray(value)
            kinds = {"f": self.dtype, "c": jnp.result_type(self.dtype, jnp.complex64)}
            return on_device(value, kinds.get(value.dtype.kind, jax.dtypes.canonicalize_dtype(value.dtype)))

        return map_arrays(converted, array)

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

    def mode_arguments(self, inputs: Any) -> dict[str, bool]:
        """The switches by which the network's call takes its mode, and their values in train mode."""
        return modes_of(self._model, inputs)

    def _forward(self, inputs: Any, train: bool, loss: Callable | None) -> Callable:
        """The pass as a pure function: (parameters, statistics, float inputs, other inputs, targets, back, added)."""
        graphdef, state = nnx.split(self.model(train=train))
        names = self.names  # without `self`, which then goes with its arrays as soon as nothing else holds it
        structure = map_arrays(lambda array: None, inputs)

        def forward(parameters, statistics, floats, others, targets, back, added):
            model = nnx.merge(graphdef, state, copy=True)
            ours = {leaf.torch_name: leaf for leaf in leaves(model, names)}
            values = parameters | statistics
            for name, value in values.items():
                ours[name].set_value(value)
            with recording_flax(model, partial(renamed, names=names), added) as recorder:
                outputs = called(model, with_arrays(structure, floats | others), train=train)
            outputs = map_output(lambda array, _: in_order(array, back), outputs)
            value = require_scalar(loss(outputs, targets), "JAX") if loss else 0.0
            if is_tree(model):  # Flax's bridge puts Linen's new statistics into new variables
                ours = {leaf.torch_name: leaf for leaf in leaves(model, names)}
            after = {name: ours[name].value() for name in statistics}
            taken = OrderedDict((name, tuple(value if isinstance(value, jax.Array) else None for value in arguments))
                                for name, arguments in recorder.arguments.items())  # fmt: skip
            # A plain dict would come out of the compiled function in the alphabet's order.
            activations = OrderedDict((name, in_order(value, back)) for name, value in recorder.outputs.items())
            return value, (flatten_output(outputs, OUTPUT), activations, taken, after)

        return forward

    def _pass(self, inputs: Any, train: bool, loss: Callable | None) -> Callable:
        """The compiled pass, and one back where there is a loss."""
        key = train, id(loss) if loss else None, repr(map_arrays(lambda array: "array", inputs))
        if key in self._compiled:
            return self._compiled[key]
        forward = self._forward(inputs, train, loss)

        def run(*arguments):
            value, (outputs, activations, _, after) = forward(*arguments)
            return value, (outputs, activations, after)

        if loss is None:
            compiled = jax.jit(lambda *arguments: (run(*arguments), ({}, {}, {})))
        else:
            # Parameters, inputs and what is added to the outputs of submodules.
            compiled = jax.jit(jax.value_and_grad(run, argnums=(0, 2, 6), has_aux=True))
        # The loss is kept alive with its entry, so that no other can get its id.
        self._compiled[key] = lambda *arguments, _loss=loss: compiled(*arguments)
        return self._compiled[key]

    def _arguments(self, inputs: Any, targets: Any = None, back: np.ndarray | None = None) -> tuple:
        """What a pass takes, without what is added: the inputs with a gradient apart from the others."""
        arrays = named_arrays(self.array(inputs))
        floats = {name: array for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.inexact)}
        others = {name: array for name, array in arrays.items() if name not in floats}
        return *self.parts(), floats, others, None if targets is None else self.array(targets), back

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
        """A pass over inputs in Flax's layout, and one back where there is a loss; `values` are left unchanged."""
        inputs, back = arranged(inputs, arrangement, self.dtype)
        with self.arithmetic():
            arguments = self._arguments(inputs, targets, back)
            added = self._zeros(inputs, arguments, train) if loss and activation_gradients else {}
            (value, (outputs, activations, after)), gradients = self._pass(inputs, train, loss and loss.jax)(
                *arguments, added
            )
            parameters, of_inputs, of_outputs = jax.tree.map(_as_in_torch, gradients)
        wide = lambda arrays: {name: _wide(array) for name, array in arrays.items()}  # noqa: E731
        ordered = lambda arrays: {name: in_order(array, back) for name, array in wide(arrays).items()}  # noqa: E731
        return Run(
            outputs=wide(outputs),
            activations=wide(activations if record else {}),
            statistics=self.state({name: after[name] for name in self.values if name in after}),
            loss=float(value) if loss else float("nan"),
            gradients=self.state({name: parameters[name] for name in self.parameters if name in parameters})
            | {f"{INPUTS}.{name}" if name else INPUTS: array for name, array in ordered(of_inputs).items()},
            activation_gradients=ordered(of_outputs),
        )

    def _zeros(self, inputs: Any, arguments: tuple, train: bool) -> dict[str, jax.Array]:
        """One for each output of a submodule that has a gradient: what is added to it."""
        shapes = jax.eval_shape(self._forward(inputs, train, None), *arguments, {})[1][1]
        return OrderedDict(
            (name, jnp.zeros(value.shape, value.dtype))
            for name, value in shapes.items()
            if jnp.issubdtype(value.dtype, jnp.inexact)
        )

    def computes_alike_in_both_modes(self, inputs: Any) -> bool:
        """Whether both modes trace to one program; nothing is computed."""
        with self.arithmetic():
            arguments = *self._arguments(inputs), {}
            programs = [jax.make_jaxpr(self._forward(inputs, train, None))(*arguments) for train in (False, True)]
        texts = {re.sub(r"0x[0-9a-f]+", "", str(program)) for program in programs}
        constants = [program.consts for program in programs]
        return len(texts) == 1 and all(map(np.array_equal, *constants))

    def submodule_calls(self, inputs: Any, *, train: bool) -> tuple[dict[str, tuple], Arrays]:
        """What every submodule took (None for what is no array) and gave, by PyTorch's path, in order of the calls."""
        forward = self._forward(inputs, train, None)
        with self.arithmetic():
            calls = jax.jit(lambda *arguments: forward(*arguments, {})[1][1:3])(*self._arguments(inputs))
        given, taken = calls
        arguments = {name: tuple(value if value is None else _wide(value) for value in values)
                     for name, values in taken.items()}  # fmt: skip
        return arguments, {name: _wide(array) for name, array in given.items()}

    def submodule_inputs(self, inputs: Any, *, train: bool) -> Arrays:
        """The input of every submodule that takes one array, in a forward pass, by PyTorch's path, in Flax's layout."""
        taken, _ = self.submodule_calls(inputs, train=train)
        return {name: values[0] for name, values in taken.items() if len(values) == 1 and values[0] is not None}

    def submodule_input_shapes(self, inputs: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of the same in eval mode; nothing is computed."""
        taken = self._shapes(inputs)[2]
        return {name: values[0].shape for name, values in taken.items() if len(values) == 1 and values[0] is not None}

    def output_shapes(self, inputs: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs in eval mode; nothing is computed."""
        return {name: array.shape for name, array in self._shapes(inputs)[0].items()}

    def _shapes(self, inputs: Any) -> tuple:
        with self.arithmetic():
            return jax.eval_shape(self._forward(inputs, False, None), *self._arguments(inputs), {})[1]

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters, and everything else."""
        parameters = {name: self.values[name] for name in self.parameters}
        return parameters, {name: value for name, value in self.values.items() if name not in parameters}

    def calls(self, inputs: Any) -> list[str]:
        """PyTorch's paths of the submodules in the order in which their calls end in eval mode; nothing is computed."""
        graphdef, state = nnx.split(self.model(train=False))
        order: list[str] = []

        def forward(arrays: dict[str, jax.Array]) -> None:
            model = nnx.merge(graphdef, state, copy=True)
            with recording_flax(model, self.torch_path) as recorder:
                called(model, with_arrays(inputs, arrays), train=False)
            order.extend(recorder.arguments)

        with self.arithmetic():
            jax.eval_shape(forward, named_arrays(self.array(inputs)))
        return order

    def module_paths(self) -> list[str]:
        """The submodules' paths in PyTorch, in order of definition."""
        return list(dict.fromkeys(self.torch_path(path) for path, _ in named_modules(self._model) if path))

    def torch_path(self, path: str) -> str:
        return renamed(path, self.names)


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _wide(array: jax.Array | np.ndarray) -> np.ndarray:
    """In float64; what is so already is not copied."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return np.asarray(array).astype(np.complex128, copy=False)
    return np.asarray(array).astype(np.float64, copy=False) if _is_float(array.dtype) else np.array(array)


def _as_in_torch(gradient: jax.Array) -> np.ndarray:
    """Of a complex value JAX gives the conjugate of PyTorch's gradient, along which the loss grows."""
    return np.conj(gradient) if np.iscomplexobj(gradient) else np.asarray(gradient)


def on_device(array: Any, dtype: Any) -> jax.Array:
    """A copy. NumPy makes it: JAX would compile a program for every shape, and those of a network are many."""
    return jax.device_put(np.array(array, dtype))


def at_precision(model: nnx.Module, precision: str) -> nnx.Module:
    """Changes a module's parameters, statistics and compute dtype in place; bfloat16 keeps float32 parameters."""
    dtype = jnp.float64 if precision == "float64" else jnp.float32
    kinds = {jnp.floating: dtype, jnp.complexfloating: jnp.result_type(dtype, jnp.complex64)}
    compute = jnp.bfloat16 if precision == "bfloat16" else dtype
    for _, module in nnx.iter_modules(model):
        for attribute, value in (("dtype", compute), ("param_dtype", dtype)):
            if hasattr(module, attribute):
                setattr(module, attribute, value)
        if precision == "float64" and getattr(module, "attention_fn", None) is nnx.dot_product_attention:
            setattr(module, "attention_fn", _attention_in_its_own_dtype)  # noqa: B010
    for _, variable in nnx.iter_graph(model):
        if not isinstance(variable, nnx.Variable):
            continue
        for kind, wanted in kinds.items():
            if jnp.issubdtype(variable.dtype, kind):
                variable.set_value(on_device(variable.get_value(), wanted))
    return model


def _attention_in_its_own_dtype(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
    """`nnx.dot_product_attention` without the shortcut through `jax.nn`, whose softmax is in float32 for any input.

    The shortcut is for attention without dropout; a rate that `deterministic` keeps from being used avoids it.
    """
    options |= {"dropout_rate": 0.5, "deterministic": True}
    return nnx.dot_product_attention(query, key, value, **options)
