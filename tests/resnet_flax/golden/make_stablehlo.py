"""Makes the StableHLO artefact that later releases must still run: python -m tests.resnet_flax.golden.make_stablehlo.

To be run once for a release, at its commit; `test_export.py` runs every artefact that lies here.
"""

import hashlib
import json
from pathlib import Path

import jax
import jaxlib
import numpy as np
from flax import nnx

import parity
from parity.checks.tolerance import Noise
from parity.sides.base import PLAIN
from parity.sides.flax import FlaxSide
from resnet_flax.export import export_stablehlo
from resnet_flax.models import BasicBlock, ResNet

RELEASE, SEED, SIZE = "0.1.0", 0, (9, 7)
HERE = Path(__file__).parent


def network() -> ResNet:
    """Two blocks, 4 and 8 wide, with random values through which a signal keeps its size."""
    rng = np.random.default_rng(SEED)
    model = ResNet(BasicBlock, (1, 1), num_classes=3, channels=(4, 8), small_images=True, rngs=nnx.Rngs(SEED))
    for path, variable in nnx.iter_graph(model):
        if not isinstance(variable, nnx.Variable) or not np.issubdtype(variable.dtype, np.floating):
            continue
        leaf, shape = path[-1], variable.shape
        if leaf in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.3 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:-1])), shape)
        variable.set_value(jax.numpy.asarray(value, np.float32))
    model.eval()
    return model


def main() -> None:
    model, images = network(), parity.random_inputs((5, *SIZE, 3), seed=SEED)
    path = HERE / f"tiny-{RELEASE}.stablehlo"
    export_stablehlo(model, path, SIZE)

    def logits(precision, **options):
        return {"outputs": FlaxSide(model, precision).run(images, train=False, **options).outputs}

    noise = Noise(logits("float64"))
    for arrangement in (PLAIN, *FlaxSide.arrangements):
        noise.add(logits("float32", arrangement=arrangement))
    np.savez(path.with_suffix(".npz"), images=images, logits=noise.oracle["outputs"]["output"])
    provenance = {
        "generator": "python -m tests.resnet_flax.golden.make_stablehlo",
        "release": RELEASE,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "seed": SEED,
        "logits": "float64",
        "floor": noise.floors["outputs"]["output"],
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, path.with_suffix(".npz"))
        },
    }
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
