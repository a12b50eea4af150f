"""A model split for the training step: its structure once, its arrays as flat dicts of dotted paths.

`{"layer1.0.conv1.kernel": array, ...}` is the cheapest pytree to dispatch, and patterns (for freezing and learning-rate
groups), checkpoints and messages use its names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx

from parity.conversion.naming import leaves
from resnet_flax.errors import UserError

Arrays = dict[str, jax.Array]
TrainState = dict[str, Any]


def match_paths(pattern: str, paths: Iterable[str]) -> set[str]:
    """The dotted paths that the regular expression `pattern` matches from their start.

    Raises:
        UserError: for an invalid pattern, or one that matches nothing, with the closest names.
    """
    paths = list(paths)
    try:
        matches = {path for path in paths if re.match(pattern, path)}
    except re.error as error:
        raise UserError(f"the path pattern {pattern!r} is not a regular expression: {error}") from error
    if not matches:
        modules = sorted({path.rpartition(".")[0] for path in paths} | {path.split(".")[0] for path in paths})
        near = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.4) or sorted({p.split(".")[0] for p in paths})
        raise UserError(f"the path pattern {pattern!r} matches no parameter; did you mean {', '.join(near)}?")
    return matches


class Network:
    """The structure of an NNX model, from which `model` rebuilds it with given arrays, in train or eval mode.

    Attributes:
        order: dotted paths of all arrays in the order of definition, which is close to that of the forward pass.
        parameters, statistics: the paths of either kind.
        frozen: the parameters that are not trained.
        live_statistics: the statistics that change in train mode.

    Args:
        model: an NNX module; its variables may be abstract (`nnx.eval_shape`). It is left in eval mode.
        freeze: regular expressions over parameter paths (`match_paths`).
        train_frozen_statistics: whether frozen norms normalise by batch statistics and keep updating the running ones.

    Raises:
        UserError: if a pattern matches nothing, or no parameter is left to train.
    """

    def __init__(self, model: nnx.Module, freeze: Sequence[str] = (), *, train_frozen_statistics: bool = False):
        arrays = leaves(model)
        self.order = tuple(leaf.path for leaf in arrays)
        self.parameters = tuple(leaf.path for leaf in arrays if isinstance(leaf.variable, nnx.Param))
        self.statistics = tuple(leaf.path for leaf in arrays if isinstance(leaf.variable, nnx.BatchStat))
        self.frozen = frozenset().union(*(match_paths(pattern, self.parameters) for pattern in freeze))
        if len(self.frozen) == len(self.parameters):
            raise UserError(f"freezing {', '.join(map(repr, freeze))} leaves no parameter to train")

        model.train()
        still = set()
        for path, module in nnx.iter_modules(model):
            name = ".".join(map(str, path))
            if isinstance(module, nnx.BatchNorm) and f"{name}.scale" in self.frozen and not train_frozen_statistics:
                module.use_running_average = True
                still |= {path for path in self.statistics if path.rpartition(".")[0] == name}
        self.live_statistics = tuple(path for path in self.statistics if path not in still)
        self._train, variables = nnx.split(model)
        model.eval()
        self._eval = nnx.graphdef(model)
        self._paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(variables)}
        self._streams = {name for name in self._paths if name not in self.order}

    def arrays(self, model: nnx.Module) -> Arrays:
        """The model's parameters and statistics."""
        flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}
        return {name: flat[name].get_value() for name in self.order}

    def model(self, arrays: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """The model with these arrays; in train mode if there is a `key`, for its random layers."""
        values = {self._paths[name]: array for name, array in arrays.items()}
        for index, name in enumerate(sorted(self._streams)):
            # Each random layer has its own stream: (count, key).
            draw = jnp.zeros((), jnp.uint32) if name.endswith("count") else None
            stream = jax.random.key(0) if key is None else jax.random.fold_in(key, index)
            values[self._paths[name]] = stream if draw is None else draw
        graphdef = self._eval if key is None else self._train
        return nnx.merge(graphdef, nnx.from_flat_state(values), copy=True)

    def live(self, model: nnx.Module) -> Arrays:
        """The statistics that a forward pass in train mode has updated."""
        arrays = self.arrays(model)
        return {name: arrays[name] for name in self.live_statistics}


def create_state(
    network: Network, arrays: Arrays, optimizer: optax.GradientTransformation, *, seed: int, ema: bool = False
) -> TrainState:
    """The initial training state, which a step takes and returns and a checkpoint stores.

    {"step", "params", "frozen", "statistics", "optimizer", "key"}, and with `ema` also "ema": {"params", "statistics"}.
    """
    params = {name: arrays[name] for name in network.parameters if name not in network.frozen}
    statistics = {name: arrays[name] for name in network.statistics}
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "frozen": {name: arrays[name] for name in network.parameters if name in network.frozen},
        "statistics": statistics,
        "optimizer": optimizer.init(params),
        "key": jax.random.key_data(jax.random.key(seed)),
    }
    if ema:
        # Copies, because a buffer can be donated only once.
        state["ema"] = jax.tree.map(jnp.copy, {"params": params, "statistics": statistics})
    return state


def model_arrays(state: TrainState, *, ema: bool = False) -> Arrays:
    """The parameters and statistics of a state that are evaluated, or their moving average.

    With a schedule-free optimiser they are not the parameters that are trained, but the average that it keeps.
    """
    source = state["ema"] if ema else state
    return {**_evaluated(source["params"], state["optimizer"]), **state["frozen"], **source["statistics"]}


def _evaluated(params: Arrays, optimizer_state: Any) -> Arrays:
    kind = optax.contrib.ScheduleFreeState
    nodes = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, kind))
    free = next((node for node in nodes if isinstance(node, kind)), None)
    return params if free is None else _averaged(free, params)


_averaged = jax.jit(optax.contrib.schedule_free_eval_params)  # compiled, as the arrays may lie on several hosts
