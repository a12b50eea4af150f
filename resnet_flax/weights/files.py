"""Any checkpoint of the family, whatever its format and naming, as one thing: the weights of a known network."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.conversion.checkpoints import read_checkpoint, write_checkpoint
from parity.conversion.convert import to_flax, to_torch
from parity.conversion.naming import NAMES_HINT
from parity.conversion.orbax import read_orbax, write_orbax
from parity.errors import ParityError
from resnet_flax.models import ARCHITECTURES, ResNet
from resnet_flax.weights.identify import Identity, identify
from resnet_flax.weights.names import Naming, recognise_naming

ARCHITECTURE = "architecture"  # the key of its name among the text kept beside the weights


@dataclass(frozen=True)
class Weights:
    """Parameters and statistics under torchvision's names and in its layouts.

    Attributes:
        state_dict: {torchvision's name: array}.
        identity: the network they belong to.
        origin: {name: dtype} of every entry as it first came, before any renaming, in order.
        source: the file or directory they were read from.
        metadata: text kept beside the weights, such as the class names.
        notes: what was noticed while reading, one sentence each.
    """

    state_dict: dict[str, np.ndarray]
    identity: Identity
    origin: dict[str, str]
    source: Path
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_model(self, rngs: nnx.Rngs | None = None, **options: Any) -> ResNet:
        """A model of this network with these weights, in eval mode. float64 weights need `jax.enable_x64`.

        Args:
            rngs: for what is random in training, such as stochastic depth; `nnx.Rngs(0)` by default.
            options: of `ResNet`.
        """
        wide = any(array.dtype == np.float64 for array in self.state_dict.values())
        model = self.identity.build_abstract(**{"param_dtype": np.float64 if wide else np.float32, **options})
        rngs = rngs or nnx.Rngs(0)
        for _, variable in nnx.iter_graph(model):
            if isinstance(variable, nnx.RngKey):
                variable.set_value(rngs())
            elif isinstance(variable, nnx.RngCount):
                variable.set_value(jnp.zeros((), jnp.uint32))
        try:
            return to_flax(self.state_dict, model)
        except ParityError as error:
            what = str(error).removesuffix(NAMES_HINT)
            raise ParityError(
                f"{self.source} does not fit {self.identity.architecture}, the nearest network here: {what}"
            ) from None

    @property
    def naming(self) -> Naming:
        """How the entries were named where they first came from."""
        return recognise_naming(self.origin)


def read_weights(path: str | Path) -> Weights:
    """Reads a .pth or .safetensors file in any naming known here, or an Orbax directory of `write_weights`.

    Raises:
        ParityError: if it cannot be read.
        UserError: if it is not a network of this family.
    """
    path = Path(path)
    if path.is_dir():
        return _read_orbax(path)
    checkpoint = read_checkpoint(path)
    naming = recognise_naming(checkpoint.tensors)
    state_dict = naming.renamed(checkpoint.tensors)
    identity = identify({name: array.shape for name, array in state_dict.items()}, scheme=naming.scheme)
    metadata = dict(checkpoint.metadata)
    said = ARCHITECTURES.get(metadata.pop(ARCHITECTURE, ""))
    if said and said.has_shapes_of(ARCHITECTURES[identity.architecture]):  # the shapes do not tell all apart
        identity = replace(identity, architecture=said.name)
    origin: dict[str, str] = {name: array.dtype.name for name, array in checkpoint.tensors.items()}
    with contextlib.suppress(KeyError, ValueError):
        origin = json.loads(metadata.pop("origin"))
    return Weights(state_dict, identity, origin, path, metadata, (*checkpoint.notes, *_oddities(state_dict, naming)))


def _read_orbax(path: Path) -> Weights:
    state, kept = read_orbax(path)
    try:
        identity, origin, metadata = Identity(**kept["identity"]), kept["origin"], kept["metadata"]
    except (KeyError, TypeError) as error:
        raise ParityError(f"{path} does not say which network it holds; was it written by parity convert?") from error
    model = identity.build_abstract()
    nnx.update(model, nnx.restore_int_paths(state))
    naming = recognise_naming(origin)
    like = {naming.to_torchvision([key])[key]: dtype for key, dtype in origin.items()}
    state_dict = {name: array.astype(like[name]) for name, array in to_torch(model).items() if name in like}
    return Weights({name: state_dict[name] for name in like}, identity, origin, path, metadata)


def _oddities(state_dict: Mapping[str, np.ndarray], naming: Naming) -> list[str]:
    notes = []
    if naming.prefix:
        notes.append(f"the names have the prefix {naming.prefix!r}")
    if naming.scheme != "torchvision":
        notes.append(f"the names are those of: {naming.scheme}")
    if not any(name.endswith("num_batches_tracked") for name in state_dict):
        notes.append("there is no num_batches_tracked (PyTorch before 0.4.1); the counters start at 0")
    for name, array in state_dict.items():
        if bad := array.size - np.count_nonzero(np.isfinite(array)):
            notes.append(
                f"warning: {name} has {bad} {'value that is' if bad == 1 else 'values that are'} NaN or infinite"
            )
    return notes


def write_weights(path: str | Path, model: ResNet, weights: Weights, *, original_names: bool = True) -> None:
    """Writes `model`, which came from `weights`, in the format that the path's name asks for.

    A .safetensors file has torchvision's names, and the original ones beside the weights; a .pth has the original ones
    itself, or torchvision's on request; no ending makes an Orbax directory with the model's own state.

    Raises:
        ParityError: if it cannot be written, or an Orbax directory is already there.
    """
    path = Path(path)
    if not path.suffix:
        pure = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
        kept = {"identity": vars(weights.identity), "origin": weights.origin, "metadata": weights.metadata}
        write_orbax(path, pure, kept)
        return
    state_dict = to_torch(model, like=weights.state_dict)
    if path.suffix != ".safetensors" and original_names:
        names = weights.naming.to_torchvision(weights.origin)
        state_dict = {key: state_dict[name] for key, name in names.items()}
    known = {ARCHITECTURE: weights.identity.architecture, "origin": json.dumps(weights.origin)}
    write_checkpoint(path, state_dict, weights.metadata | known)
