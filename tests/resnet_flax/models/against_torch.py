"""A Flax network's eval outputs against its PyTorch original's, at every stage."""

import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import parity
from parity import to_flax
from parity.checks.tolerance import PROFILES, relative
from tests.numerics import TENSORS, assert_within, torch_noise


@nnx.jit
def flax_outputs(model, images):
    return {**model.features(images, model.stages), "output": model(images)}


def check_against_torch(build, original, height: int, width: int, channels: int) -> dict[str, tuple[float, ...]]:
    """{place: (our float32 error, torch's float32 floor, our float64 error)}, all relative to float64 torch."""
    parity.randomize(None, original)
    images = parity.random_inputs((2, height, width, channels))
    abstract = nnx.eval_shape(build)
    abstract.eval()
    noise = torch_noise(original, images, (*abstract.stages, "output"))
    ours = flax_outputs(to_flax(original.state_dict(), abstract), jnp.asarray(images))
    narrow = assert_within(ours, noise)
    with jax.enable_x64(True):
        abstract = nnx.eval_shape(partial(build, param_dtype=jnp.float64))
        abstract.eval()
        model = to_flax(copy.deepcopy(original).double().state_dict(), abstract)
        wide = jax.tree.map(np.asarray, flax_outputs(model, jnp.asarray(images, jnp.float64)))
    errors = {place: (*narrow[place], relative(array, noise.oracle[TENSORS][place])) for place, array in wide.items()}
    assert all(error <= PROFILES["float64"].least for *_, error in errors.values()), errors
    return errors
