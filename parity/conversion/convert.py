"""state_dict <-> NNX module: total, strict and exact.

Total and strict: every entry is consumed and every variable filled, or nothing is changed and one error lists both
sides. Exact: values keep their bits. A narrower float type widens; float64 never narrows.
"""

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import jax
import numpy as np
from flax import nnx

from parity.conversion.naming import NAMES_HINT, Leaf, find_prefix, homeless_counters, leaves, mismatch_message
from parity.conversion.recurrent import summed
from parity.conversion.trees import as_given, as_module
from parity.errors import ParityError
from parity.registry import recognised

TILE_ROWS, TILE_WIDTH, ROOM = 64, 1024, 16  # elements

Module = TypeVar("Module")
StateDict = Mapping[str, Any]


def as_numpy(tensor: Any) -> np.ndarray:
    """A numpy view of a torch tensor (bfloat16 included) or of anything array-like."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        import ml_dtypes
        import torch

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def copied(view: np.ndarray, dtype: Any = None) -> np.ndarray:
    """A fresh C-ordered array with the view's values, a kernel's transpose made in tiles that stay in the cache.

    PyTorch's first axis is Flax's last. A tile is first copied as it lies, with some room behind each row: rows a power
    of two apart would fall on the same few lines of the cache.
    """
    result = np.empty(view.shape, dtype or view.dtype)
    if view.ndim < 2 or view.flags.c_contiguous:
        result[...] = view
        return result
    as_it_lies = np.argsort(view.strides)[::-1]
    source, target = view.transpose(as_it_lies), result.transpose(as_it_lies)
    inner = math.prod(source.shape[2:])
    columns = max(1, TILE_WIDTH // inner)
    tile = np.empty((TILE_ROWS, columns * inner + ROOM), view.dtype)
    for row in range(0, source.shape[0], TILE_ROWS):
        for column in range(0, source.shape[1], columns):
            here = np.s_[row : row + TILE_ROWS, column : column + columns]
            part = source[here]
            block = tile[: part.shape[0], : part.shape[1] * inner].reshape(part.shape)
            block[...] = part
            target[here] = block
    return result


def _match(state_dict: StateDict, model: nnx.Module, names: Mapping[str, str] | None) -> list[tuple[Leaf, str | None]]:
    """Every leaf of the model with its key in the state_dict (None for a counter that the file doesn't have)."""
    wanted = leaves(model, names)
    by_name = {leaf.torch_name: leaf for leaf in wanted}
    prefix = find_prefix(state_dict, by_name)
    keys = {key.removeprefix(prefix) if key.startswith(prefix) else key: key for key in state_dict}

    uncounted = not any(name.endswith("num_batches_tracked") for name in keys)
    missing = {
        name: leaf.torch_shape
        for name, leaf in by_name.items()
        if name not in keys and not (leaf.is_counter and uncounted)
    }
    known = {*by_name, *homeless_counters(keys, by_name), *(leaf.addend for leaf in wanted)}
    unexpected = {name: tuple(state_dict[key].shape) for name, key in keys.items() if name not in known}
    if unexpected:  # a tied parameter is in a state_dict under every name it has
        known = {_memory(state_dict[keys[name]]) for name in by_name if name in keys}
        unexpected = {name: shape for name, shape in unexpected.items() if _memory(state_dict[keys[name]]) not in known}
    misshapen = {
        name: (tuple(state_dict[keys[name]].shape), leaf.torch_shape)
        for name, leaf in by_name.items()
        if name in keys and tuple(state_dict[keys[name]].shape) != leaf.torch_shape
    }
    if missing or unexpected or misshapen:
        theirs = recognised({name: tuple(state_dict[key].shape) for name, key in keys.items()})
        ours = recognised({name: leaf.torch_shape for name, leaf in by_name.items()})
        why = f"it has the shapes of {theirs}, and the model those of {ours}" if theirs and ours else ""
        hint = NAMES_HINT if missing and unexpected and not why else ""
        raise ParityError(mismatch_message(missing, unexpected, misshapen, why=why), hint=hint)
    return [(leaf, keys.get(leaf.torch_name)) for leaf in wanted]


def _memory(tensor: Any) -> tuple[str, int, tuple[int, ...]]:
    """What two names for one tensor share: its address and shape."""
    if hasattr(tensor, "data_ptr"):
        place, address = str(tensor.device), tensor.data_ptr()
    elif isinstance(tensor, np.ndarray):
        place, address = "cpu", tensor.__array_interface__["data"][0]
    else:
        place, address = "", id(tensor)
    return place, address or id(tensor), tuple(tensor.shape)  # tensors without memory have the address 0


def _fitted(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` as `dtype`, if that keeps every value."""
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "c":
        raise ParityError(
            f"{name} has complex numbers ({array.dtype}) in the state_dict, and the model real ones ({dtype})"
        )
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(dtype, np.integer):
        if array.size and (array.max() > np.iinfo(dtype).max or array.min() < np.iinfo(dtype).min):
            raise ParityError(f"{name} = {array.max()} does not fit in {dtype}")
        return array
    if np.issubdtype(dtype, np.integer):  # a counter, in a state_dict of which every tensor was made float16
        whole = array.astype(np.float64).astype(np.int64) if np.isfinite(array).all() else None
        if whole is None or (whole != array).any():
            raise ParityError(
                f"{name} is {array.dtype} in the state_dict, not a whole number, and {dtype} in the model"
            )
        return _fitted(name, whole, dtype)
    if np.issubdtype(array.dtype, np.integer):
        raise ParityError(f"{name} is {array.dtype} in the state_dict and {dtype} in the model")
    if np.promote_types(array.dtype, dtype) != dtype:
        raise ParityError(
            f"{name} is {array.dtype} and the model's {dtype} would narrow it: build the model with "
            f"param_dtype={array.dtype} (float64 under jax.enable_x64), or convert the state_dict first"
        )
    return array


def to_flax(state_dict: StateDict, model: Module, *, names: Mapping[str, str] | None = None) -> Module:
    """Fills `model` with a PyTorch state_dict and returns it, in eval mode.

    Nothing is changed unless everything fits. A prefix common to all names ("module.") is recognised. A file without
    any `num_batches_tracked` (PyTorch before 0.4.1) sets the counters to zero. No memory is shared with the tensors.
    The two biases of a recurrent layer become their sum, in their own precision, as Flax has one.

    Args:
        state_dict: names to torch tensors or numpy arrays.
        model: an NNX module whose names correspond; it may be abstract, as `nnx.eval_shape` gives it. Or a network that
            holds no values itself: a Linen module's variables, a tree of parameters, or a pair (Linen module,
            variables) or (function, parameters); it is left as it is, and a filled one returned.
        names: {Flax module path: PyTorch module path}, where they do not correspond by themselves.

    Raises:
        ParityError: a list of every missing, unexpected and misshapen entry; a dtype that would lose values; or
            arguments of other types.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> ours.kernel.shape, theirs.weight.shape
        ((8, 4), torch.Size([4, 8]))
    """
    module = as_module(model) if isinstance(state_dict, Mapping) else None
    if module is None:
        found = f"{type(state_dict).__module__}.{type(state_dict).__name__} and {type(model).__name__}"
        file = "; parity.load_checkpoint reads a file" if isinstance(state_dict, str | os.PathLike) else ""
        raise ParityError(
            f"expected a state_dict (torch_model.state_dict()) and then a network in JAX, found {found}{file}"
        )
    _require_tensors(state_dict)
    matched = _match(state_dict, module, names)

    def converted(leaf: Leaf, key: str | None) -> Any:
        dtype = np.dtype(leaf.variable.dtype)
        if key is None:  # a counter that the file doesn't have
            return np.zeros(leaf.variable.shape, dtype)
        value = leaf.rule.to_flax(_fitted(key, _summed(leaf, key, state_dict), dtype))
        return tuple(copied(part, dtype) for part in value) if leaf.rule.others else copied(value, dtype)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the interpreter lock while it copies
        arrays = list(pool.map(lambda match: converted(*match), matched))
    _require_one_value_each(matched, arrays)
    # JAX's own part stays in this thread, where the caller may have enabled float64.
    for (leaf, _), array in zip(matched, jax.device_put(arrays), strict=True):
        leaf.set_value(array)
    module.eval()
    return cast(Module, as_given(module, model))


def _addend_key(leaf: Leaf, key: str) -> str:
    """The key of what is added to the leaf at `key`."""
    return key.removesuffix(leaf.torch_name) + (leaf.addend or "")


def _summed(leaf: Leaf, key: str, state_dict: StateDict) -> np.ndarray:
    """The entry for a leaf, with the one added to it that PyTorch keeps apart, if it does."""
    array, other = as_numpy(state_dict[key]), _addend_key(leaf, key)
    if leaf.rule.summed is None or other not in state_dict:
        return array
    return summed(array, as_numpy(state_dict[other]), leaf.rule.summed, other)


def _require_tensors(state_dict: StateDict) -> None:
    for name, value in state_dict.items():
        if not hasattr(value, "shape") or not isinstance(name, str):
            raise ParityError(f"{name!r} in the state_dict is a {type(value).__name__}: names of tensors are expected")
        if getattr(value, "is_meta", False):
            raise ParityError(f"{name} in the state_dict is on PyTorch's device meta: it has no values")


def _require_one_value_each(matched: list[tuple[Leaf, str | None]], arrays: list[np.ndarray]) -> None:
    first: dict[int, tuple[str | None, np.ndarray]] = {}
    for (leaf, key), array in zip(matched, arrays, strict=True):
        name, value = first.setdefault(id(leaf.variable), (key, array))
        if value is not array and not all(map(_equal, jax.tree.leaves(value), jax.tree.leaves(array))):
            raise ParityError(f"{name} and {key} are one variable in the model and differ in the state_dict")


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def require_values(model: nnx.Module) -> None:
    """Raises ParityError for a model that `nnx.eval_shape` has made and nothing has filled."""
    for leaf in leaves(model):
        if isinstance(leaf.variable.get_value(), jax.ShapeDtypeStruct):
            raise ParityError(f"the {type(model).__name__} has no values yet (nnx.eval_shape); parity.to_flax fills it")


def to_torch(
    model: Any, *, like: StateDict | None = None, names: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """The model's parameters and statistics as a PyTorch state_dict of numpy arrays, which share nothing with it.

    Args:
        model: an NNX module, or another network in JAX as in `to_flax`.
        like: a state_dict whose prefix, order, dtypes and presence of `num_batches_tracked` are copied.
            Values that a narrower dtype cannot hold are rounded to the nearest it has.
        names: as in `to_flax`.

    Raises:
        ParityError: if `like` does not fit the model, or its dtype overflows.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> {name: array.shape for name, array in parity.to_torch(ours).items()}
        {'weight': (4, 8), 'bias': (4,)}
    """
    module = as_module(model)
    if module is None:
        raise ParityError(f"expected a network in JAX, found {type(model).__module__}.{type(model).__name__}")
    if like is not None and not isinstance(like, Mapping):
        raise ParityError(f"like= takes a state_dict (torch_model.state_dict()), found a {type(like).__name__}")
    require_values(module)
    if like is None:
        arrays = {leaf.torch_name: _torch_array(leaf) for leaf in leaves(module, names)}
        addends = {leaf.addend: np.zeros_like(arrays[leaf.torch_name]) for leaf in leaves(module, names) if leaf.addend}
        return arrays | addends
    _require_tensors(like)
    by_key = {key: leaf for leaf, key in _match(like, module, names) if key is not None}
    kept = _biases_of(like, by_key)
    by_memory = {_memory(like[key]): leaf for key, leaf in by_key.items()}
    result = {}
    for key, tensor in like.items():
        if key in kept:
            result[key] = kept[key]
            continue
        template = as_numpy(tensor)
        leaf = by_key.get(key) or by_memory.get(_memory(tensor))  # the latter for the second name of a tied parameter
        if leaf is None:  # a counter that this model does not keep
            result[key] = template.copy()
            continue
        array = _torch_array(leaf)
        with np.errstate(over="ignore"):
            cast = array.astype(template.dtype)
        if np.isfinite(array).all() and not np.isfinite(cast).all():
            raise ParityError(f"{key} has values up to {abs(array).max():.3g}, too large for {template.dtype}")
        result[key] = cast
    return result


def _biases_of(like: StateDict, by_key: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Pairs of biases whose sum is the model's: as in `like` where they have that sum, else the second is zero."""
    biases: dict[str, np.ndarray] = {}
    for key, leaf in by_key.items():
        other = _addend_key(leaf, key)
        if leaf.addend is None or other not in like:
            continue
        array = _torch_array(leaf)
        if np.array_equal(_summed(leaf, key, like), array):
            biases |= {name: as_numpy(like[name]).copy() for name in (key, other)}
        else:
            biases[other] = np.zeros_like(as_numpy(like[other]))
    return biases


def _torch_array(leaf: Leaf) -> np.ndarray:
    return copied(leaf.rule.to_torch(jax.tree.map(np.asarray, leaf.value())), leaf.rule.torch_dtype)
