"""What a check can be run on: inputs, targets and outputs that leave something to compare."""

from typing import Any

import numpy as np

from parity.errors import ParityError
from parity.sides.arguments import named_arrays
from parity.sides.base import Arrays, Run


def require_inputs(inputs: Any, *, takes_tokens: bool) -> None:
    """Raises ParityError unless these are arrays of finite values, and no integers where floats are computed with."""
    arrays = named_arrays(inputs)
    if not any(array.ndim for array in arrays.values()):
        raise ParityError(
            "inputs is one array (N, ..., C), a tuple of arguments or a dict of named ones, found a "
            f"{type(inputs).__name__} without an array: parity.random_inputs(shape) makes one"
        )
    for name, array in arrays.items():
        which = f"the input {name} is" if name else "the inputs are"
        if not array.size:
            raise ParityError(f"{which} empty {array.shape}: a batch of a few examples is needed")
        is_float = array.dtype.kind in "fc"
        looks_like_images = array.dtype == np.uint8 or (array.ndim >= 4 and array.dtype != bool)
        if looks_like_images and not is_float and not takes_tokens:
            raise ParityError(f"{which} {array.dtype}, but the networks compute with floats: scale and convert them")
        if is_float and not np.isfinite(array).all():
            has = f"the input {name} has" if name else "the inputs have"
            raise ParityError(f"{has} NaN or infinite values")


def random_target(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Normal random numbers; one for each example where square axes leave open which are the channels."""
    is_open = len(shape) >= 4 and len(set(shape[1:])) == 1
    target = rng.normal(size=(shape[0], *[1] * (len(shape) - 1)) if is_open else shape)
    return np.array(np.broadcast_to(target * (1 + 0.5j) if dtype.kind == "c" else target, shape))


def infinite_alike(outputs: Arrays, others: Arrays) -> bool:
    """Whether these are without NaN, infinite in the same places, and have finite values elsewhere."""
    pairs = [(outputs[name], array) for name, array in others.items()]
    return any(np.isfinite(theirs).any() for _, theirs in pairs) and all(
        ours.shape == theirs.shape
        and not np.isnan(ours).any()
        and not np.isnan(theirs).any()
        and np.array_equal(np.where(np.isinf(ours), ours, 0), np.where(np.isinf(theirs), theirs, 0))
        for ours, theirs in pairs
    )


def is_finite(run: Run) -> bool:
    """Whether its outputs are; what lies inside may be infinite."""
    return all(np.isfinite(array).all() for array in run.outputs.values())


def first_not_finite(run: Run) -> str:
    """The first submodule whose output has NaN or infinite values; "" if none has."""
    finite = {name: np.isfinite(value).all() for name, value in {**run.activations, **run.outputs}.items()}
    return next((name for name, good in finite.items() if not good), "")


def looks_channels_first(inputs: Any) -> str:
    """What to do about images that seem to lie as PyTorch takes them; "" if they do not."""
    shape = getattr(inputs, "shape", ())
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        return f"; {shape} looks like PyTorch's (N, C, H, W): pass inputs.transpose(0, 2, 3, 1)"
    return ""
