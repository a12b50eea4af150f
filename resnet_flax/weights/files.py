"""Checkpoints of the family in any format and naming, read as the weights of a known network, and written."""

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
from parity.conversion.orbax import read_orbax, write_orbax
from parity.errors import ParityError
from resnet_flax.models import ARCHITECTURES, ResNet, get_architecture
from resnet_flax.weights.identify import Identity, identify
from resnet_flax.weights.metadata import OF_THE_FILE, Metadata, metadata_of
from resnet_flax.weights.names import Naming, recognise_naming


@dataclass(frozen=True)
class Note:
    """Something noticed while reading weights: one sentence, and whether it warns of a defect."""

    text: str
    is_warning: bool = False

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.is_warning else self.text


@dataclass(frozen=True)
class Weights:
    """Parameters and statistics under torchvision's names and in its layouts.

    Attributes:
        state_dict: {torchvision's name: array}.
        identity: the network they belong to.
        origin: {name: dtype} of every entry in the checkpoint that they first came from, in order.
        source: the file or directory they were read from.
        metadata: text kept beside the weights, such as the class names (`Metadata`).
        notes: what was noticed while reading.
    """

    state_dict: dict[str, np.ndarray]
    identity: Identity
    origin: dict[str, str]
    source: Path
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

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
            raise ParityError(
                f"{self.source} does not fit {self.identity.architecture}, the nearest network here: {error.message}"
            ) from None

    @property
    def naming(self) -> Naming:
        """How the entries were named in the checkpoint that they first came from."""
        return recognise_naming(self.origin)


def read_weights(path: str | Path) -> Weights:
    """Reads a .pth or .safetensors file in any naming known here, or an Orbax directory from `write_weights`.

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
    identity = identify({name: tuple(array.shape) for name, array in state_dict.items()})
    kept = Metadata(checkpoint.metadata)
    named = ARCHITECTURES.get(kept.architecture or "")
    if named and named.has_shapes_of(ARCHITECTURES[identity.architecture]):  # shapes alone do not determine a network
        identity = replace(identity, architecture=named.name)
    own: dict[str, str] = {name: array.dtype.name for name, array in checkpoint.tensors.items()}
    metadata = {key: value for key, value in checkpoint.metadata.items() if key not in OF_THE_FILE}
    notes = (*map(Note, checkpoint.notes), *_oddities(state_dict, naming))
    return Weights(state_dict, identity, own if kept.origin is None else kept.origin, path, metadata, notes)


def _read_orbax(path: Path) -> Weights:
    state, kept = read_orbax(path)
    try:
        identity, origin, metadata = Identity(**kept["identity"]), kept["origin"], kept["metadata"]
    except (KeyError, TypeError) as error:
        raise ParityError(
            f"{path} lacks the name of its network, which `python -m parity convert` writes; give the file it came from"
        ) from error
    identity = replace(identity, architecture=get_architecture(identity.architecture).name)
    model = identity.build_abstract()
    nnx.update(model, nnx.restore_int_paths(state))
    names = recognise_naming(origin).to_torchvision(origin)
    like = {names[key]: dtype for key, dtype in origin.items()}
    state_dict = {name: array.astype(like[name]) for name, array in to_torch(model).items() if name in like}
    return Weights({name: state_dict[name] for name in like}, identity, origin, path, metadata)


def _oddities(state_dict: Mapping[str, np.ndarray], naming: Naming) -> list[Note]:
    notes = []
    if naming.prefix:
        notes.append(Note(f"the names have the prefix {naming.prefix!r}"))
    if naming.scheme != "torchvision":
        notes.append(Note(f"the names are those of: {naming.scheme}"))
    if not any(name.endswith("num_batches_tracked") for name in state_dict):
        notes.append(Note("there is no num_batches_tracked (PyTorch before 0.4.1); the counters start at 0"))
    for name, array in state_dict.items():
        if bad := array.size - np.count_nonzero(np.isfinite(array)):
            values = "value that is" if bad == 1 else "values that are"
            notes.append(Note(f"{name} has {bad} {values} NaN or infinite", is_warning=True))
    return notes


def write_weights(path: str | Path, model: ResNet, weights: Weights, *, original_names: bool = True) -> None:
    """Writes `model`, which came from `weights`, in the format of the path's suffix.

    A .safetensors file has torchvision's names, and keeps the original ones beside the weights; a .pth file has the
    original names, or torchvision's on request; a path without a suffix becomes an Orbax directory with the model's
    own state.

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
    of_the_file = metadata_of(weights.identity.architecture, origin=weights.origin)
    write_checkpoint(path, state_dict, weights.metadata | of_the_file)
