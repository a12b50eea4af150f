"""Writes an artifact of this version, for later ones to run: python -m tests.resnet_flax.golden.make_stablehlo

For each release it is run once, and its two files, VERSION.stablehlo and VERSION.json, are kept; never again for a
version that is released. The network is far smaller than any architecture, and so is what `export` writes of it.
"""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resnet_flax.export import export_stablehlo
from resnet_flax.models import BasicBlock, ResNet

FOLDER = Path(__file__).parent
SEED, SIZE = 20, (18, 15)


def images(count: int) -> np.ndarray:
    """float32 (count, 18, 15, 3), the same in every version of NumPy: it promises that of this generator."""
    return np.random.RandomState(SEED).standard_normal((count, *SIZE, 3)).astype(np.float32)


def network() -> ResNet:
    """Two stages of the usual parts, with random scales, biases and statistics."""
    model = ResNet(BasicBlock, (1, 1), channels=(6, 10), num_classes=5, rngs=nnx.Rngs(SEED))
    model.eval()
    random = np.random.RandomState(SEED + 1)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] in ("scale", "var"):
            variable.set_value(jnp.asarray(random.uniform(0.5, 1.5, variable.shape), jnp.float32))
        elif path[-1] in ("bias", "mean"):
            variable.set_value(jnp.asarray(random.normal(0, 0.3, variable.shape), jnp.float32))
    return model


def main() -> None:
    release = version("resnet-flax")
    path = FOLDER / f"{release}.stablehlo"
    model = network()
    export_stablehlo(model, path, SIZE)
    float32 = np.asarray(jax.jit(model)(images(2)))
    with jax.enable_x64(True):
        graph, state = nnx.split(model)
        wide = jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
        float64 = np.asarray(jax.jit(lambda x: nnx.merge(graph, wide)(x))(images(2).astype(np.float64)))
    error = float(np.abs(float32 - float64).max() / np.abs(float64).max())
    provenance = {
        "generator": "python -m tests.resnet_flax.golden.make_stablehlo",
        "versions": {name: version(name) for name in ("resnet-flax", "jax", "jaxlib", "flax", "numpy")},
        "machine": platform.machine(),
        "seed": SEED,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "image_size": SIZE,
        "logits": float64.tolist(),
        "float32_error": error,
        "tolerance": 16 * error,
        "about": "logits of images(2) in float64; errors are the largest difference over the largest logit; another "
        "processor adds in another order, hence the 16",
    }
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{path}: {path.stat().st_size:,} bytes, float32 error {error:.1e}")


if __name__ == "__main__":
    main()
