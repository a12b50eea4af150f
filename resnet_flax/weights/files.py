"""Checkpoints of the family in any format and naming, read as the weights of a known network, and written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.conversion.checkpoints import Checkpoint, from_tree, read_checkpoint, write_checkpoint
from parity.conversion.convert import to_flax, to_torch
from parity.conversion.folders import weights_file
from parity.conversion.orbax import read_orbax, read_orbax_tree, write_orbax
from parity.errors import ParityError
from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES, ResNet, get_architecture
from resnet_flax.weights.arithmetic import arithmetic_of, model_options
from resnet_flax.weights.config import Config, read_config
from resnet_flax.weights.identify import Identity, identify
from resnet_flax.weights.layouts import CHILDREN, TORCHVISION, Layout
from resnet_flax.weights.metadata import OF_THE_FILE, Metadata, metadata_of
from resnet_flax.weights.refusals import WAY_ON, seen
from resnet_flax.weights.selection import Selection, layout_of, names_by_layout, select
from resnet_flax.weights.signs import Clues, named_architecture, signs
from resnet_flax.weights.wrappers import computed, unfolded


@dataclass(frozen=True)
class Note:
    """Something noticed while reading weights: one sentence, and whether it warns of a defect."""

    text: str
    is_warning: bool = False

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.is_warning else self.text


NAMED = "the architecture's name (--arch or --model)"


@dataclass(frozen=True)
class Doubt:
    """What was decided or assumed about arithmetic that no shape shows.

    Attributes:
        text: what was seen and what was made of it.
        settled_by: arguments of `ResNet`, any of which makes it the caller's decision, or "architecture" for its name.
    """

    text: str
    settled_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = [NAMED if name == "architecture" else name for name in self.settled_by]
        return f"{self.text}; settle it with {' or '.join(names)}" if names else self.text

    def to_json(self) -> list[Any]:
        return [self.text, list(self.settled_by)]


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
        names: {name in `origin`: torchvision's}.
        options: the arithmetic that they need (`resnet_flax.weights.arithmetic`).
        doubts: what was decided or assumed about the arithmetic.
    """

    state_dict: dict[str, np.ndarray]
    identity: Identity
    origin: dict[str, str]
    source: Path
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()

    def warnings(self, **given: Any) -> tuple[Note, ...]:
        """The notes, with a warning for every doubt that no argument of `ResNet` in `given` settles."""
        open_doubts = [doubt for doubt in self.doubts if not set(doubt.settled_by) & given.keys()]
        return (*self.notes, *(Note(str(doubt), is_warning=True) for doubt in open_doubts))

    def named(self, architecture: str) -> "Weights":
        """The same as the weights of that architecture, with a warning if they came as those of another one.

        Raises:
            UserError: if they do not fit it.
        """
        row, own = get_architecture(architecture), ARCHITECTURES[self.identity.architecture]
        if not row.has_shapes_of(own):
            raise UserError(f"{self.source} holds a {own.name}, not a {row.name}")
        doubts = tuple(doubt for doubt in self.doubts if "architecture" not in doubt.settled_by)
        notes = self.notes
        if row.name != own.name and len(doubts) == len(self.doubts):
            text = (
                f"{self.source} came as a {own.name}, whose names and shapes {row.name} has too; taken as a {row.name}"
            )
            notes = (*notes, Note(text, is_warning=True))
        return replace(self, identity=replace(self.identity, architecture=row.name), doubts=doubts, notes=notes)

    def to_model(self, rngs: nnx.Rngs | None = None, **options: Any) -> ResNet:
        """A model of this network with these weights, in eval mode. float64 weights need `jax.enable_x64`.

        Args:
            rngs: for what is random in training, such as stochastic depth; `nnx.Rngs(0)` by default.
            options: of `ResNet`.
        """
        wide = any(array.dtype == np.float64 for array in self.state_dict.values())
        defaults = {"param_dtype": np.float64 if wide else np.float32}
        try:
            model = self.identity.build_abstract(**{**defaults, **model_options(self.options, options)})
        except UserError as error:  # such as a BasicBlock with the stride in its first 1x1
            raise UserError(f"{self.source} needs {self.options}: {error}" if self.options else str(error)) from error
        rngs = rngs or nnx.Rngs(0)
        for _, variable in nnx.iter_graph(model):
            if isinstance(variable, nnx.RngKey):
                variable.set_value(rngs())
            elif isinstance(variable, nnx.RngCount):
                variable.set_value(jnp.zeros((), jnp.uint32))
        try:
            return to_flax(self.state_dict, model)
        except ParityError as error:
            if sentence := seen({name: tuple(array.shape) for name, array in self.state_dict.items()}):
                raise ParityError(f"{self.source}: {sentence}") from None
            raise ParityError(
                f"{self.source} does not fit {self.identity.architecture}, the nearest network here; if it is another, "
                f"{WAY_ON}; {error.message}"
            ) from None

    @property
    def layout(self) -> tuple[Layout, str]:
        """How the entries were named in the checkpoint that they first came from, and the prefix before the names."""
        return layout_of(self.origin)


def read_weights(path: str | Path, prefix: str | None = None) -> Weights:
    """Reads the ResNet in a checkpoint of any format and naming known here.

    A config.json beside it is obeyed. What else is in it is dropped, with a note.

    Args:
        path: a .pth, .safetensors, .npz, .msgpack or .pkl file, a folder with model.safetensors or pytorch_model.bin,
            or an Orbax directory, of `write_weights` or of Linen parameters.
        prefix: what the names of the wanted network begin with, where the file holds several.

    Raises:
        ParityError: if it cannot be read.
        UserError: if it holds no network of this family, or several and no prefix chooses one.
    """
    path = Path(path)
    if not path.is_dir() or weights_file(path):
        return from_checkpoint(read_checkpoint(path), path, prefix)
    try:
        state, kept = read_orbax(path)
    except ParityError as error:
        if (tree := read_orbax_tree(path)) is None:
            raise
        try:
            return from_checkpoint(from_tree(tree, path), path, prefix)
        except ParityError:
            raise error from None
    return _from_orbax(path, state, kept)


def from_checkpoint(checkpoint: Checkpoint, path: Path, prefix: str | None) -> Weights:
    tensors, notes = computed(checkpoint.tensors)
    selection = select(tensors, prefix, source=str(path))
    names = selection.names
    state_dict = {name: selection.layout.to_torch(name, tensors[key]) for key, name in names.items()}
    own: dict[str, str] = {key: tensors[key].dtype.name for key in names}
    state_dict, folded = unfolded(state_dict)
    names = {key: folded.get(name, name) for key, name in names.items()}
    if (head := state_dict.get("fc.weight")) is not None and "fc.bias" not in state_dict and head.ndim == 2:
        state_dict["fc.bias"] = np.zeros(head.shape[0], head.dtype)
        notes.append("the head has no bias; it is 0 here")
    identity = _identity(state_dict, tensors, selection)

    kept = Metadata(checkpoint.metadata)
    config = read_config(path if path.is_dir() else path.parent)
    if config:
        config.require(identity)
    identity, doubts = _named(identity, path, selection, (config.architecture if config else None, kept.architecture))
    options, others = _decided(path, selection, identity, checkpoint, config, bool(folded))
    doubts += others
    metadata = {key: value for key, value in checkpoint.metadata.items() if key not in OF_THE_FILE}
    if config and config.preprocessing:
        metadata |= config.preprocessing.to_metadata()
    if config and config.class_names:
        metadata["class_names"] = json.dumps(list(config.class_names))
    notes = (
        *map(Note, (*checkpoint.notes, *notes)),
        *_about(selection, bool(folded)),
        *_oddities(state_dict),
    )
    origin = own if kept.origin is None else kept.origin
    kept_names = names if kept.origin is None else kept.names or names_by_layout(kept.origin)
    return Weights(state_dict, identity, origin, path, metadata, notes, kept_names, options, doubts)


def _identity(
    state_dict: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], selection: Selection
) -> Identity:
    shapes = {name: tuple(array.shape) for name, array in state_dict.items()}
    try:
        return identify(shapes)
    except UserError as error:
        beside = {
            name.removeprefix(selection.prefix): tuple(tensors[name].shape)
            for name in selection.dropped
            if name.startswith(selection.prefix)
        }
        raise UserError(seen(shapes | beside) or f"{error}; {WAY_ON}") from error


def _named(
    identity: Identity, path: Path, selection: Selection, known: Iterable[str | None]
) -> tuple[Identity, tuple[Doubt, ...]]:
    """Which of the architectures with these names and shapes it is, and what is assumed about that.

    Args:
        known: the names that came with the weights, the most reliable first.
    """
    candidates = (identity.architecture, *identity.also)
    plain = (name.rpartition("/")[2].partition(".")[0] for name in known if name)  # of timm/resnet50.a1_in1k
    if name := next((name for name in plain if name in candidates), None):
        return replace(identity, architecture=name), ()
    # The variants are timm's: they have no names but torchvision's, and the stem for large images.
    if not identity.also or identity.small_images or selection.layout.name not in (TORCHVISION.name, CHILDREN):
        return identity, ()
    name = named_architecture(path, candidates)
    if name == identity.architecture:
        return identity, ()
    seen = f"the name of {path} has {name} in it" if name else "nothing that came with the weights names one of them"
    name = name or identity.architecture
    text = (
        f"{', '.join(candidates)} have the same names and shapes and compute different things; {seen}; taken as {name}"
    )
    return replace(identity, architecture=name), (Doubt(text, ("architecture",)),)


def _decided(
    path: Path, selection: Selection, identity: Identity, checkpoint: Checkpoint, config: Config | None, folded: bool
) -> tuple[dict[str, Any], tuple[Doubt, ...]]:
    """The arithmetic that the weights need, as far as anything shows it, and what is assumed about the rest."""
    kept = Metadata(checkpoint.metadata)
    if kept.options is not None:  # written here: nothing is guessed a second time
        return kept.options, tuple(Doubt(text, tuple(settled)) for text, settled in kept.doubts)
    options: dict[str, Any] = {"norm_epsilon": 0.0} if folded else {}
    counted = any(name.endswith("num_batches_tracked") for name in selection.names.values())
    doubts = []
    for sign in signs(Clues(path, selection, identity, counted)):
        if config and config.architecture and sign.of_the_architecture:
            continue
        options |= sign.options
        if sign.options:
            decided = ", ".join(f"{name}={value}" for name, value in sign.options.items())
            doubts.append(Doubt(f"{sign.text}; taken with {decided}", sign.settled_by))
        else:
            doubts.append(Doubt(sign.text, sign.settled_by))
    if config:
        options |= config.options
    return options, tuple(doubts)


def _from_orbax(path: Path, state: dict[str, Any], kept: dict[str, Any]) -> Weights:
    try:
        identity, origin, metadata = Identity(**kept["identity"]), kept["origin"], kept["metadata"]
    except (KeyError, TypeError) as error:
        raise ParityError(
            f"{path} lacks the name of its network, which `python -m parity convert` writes; give the file it came from"
        ) from error
    identity = replace(identity, architecture=get_architecture(identity.architecture).name)
    options, doubts = kept.get("options", {}), tuple(Doubt(text, tuple(by)) for text, by in kept.get("doubts", ()))
    model = identity.build_abstract(**model_options(options, {}))
    nnx.update(model, nnx.restore_int_paths(state))
    names = kept.get("names") or names_by_layout(origin)
    like = {names[key]: dtype for key, dtype in origin.items()}
    uncounted = not any(name.endswith("num_batches_tracked") for name in like)
    state_dict = {
        name: array.astype(like[name]) if name in like else array
        for name, array in to_torch(model).items()
        if name in like or not (uncounted and name.endswith("num_batches_tracked"))
    }
    ordered = {name: state_dict[name] for name in like if name in state_dict} | state_dict
    return Weights(ordered, identity, origin, path, metadata, (), names, options, doubts)


def _about(selection: Selection, folded: bool) -> list[Note]:
    notes = []
    if selection.prefix:
        notes.append(Note(f"the names have the prefix {selection.prefix!r}"))
    if selection.layout.name != "torchvision":
        notes.append(Note(f"the names are those of: {selection.layout.name}"))
    if selection.head:
        notes.append(Note(f"the linear layer {selection.head} is the head, fc here"))
    if selection.dropped:
        notes.append(Note(f"dropped what is not part of the network: {selection.outside}"))
    if selection.headless:
        notes.append(Note(f"the network has no head here: {selection.headless}"))
    if folded:
        notes.append(
            Note(
                "there are biases of convolutions and no norms: these were folded into the convolutions. The outputs "
                "are exact, with norms that change nothing; in training these would normalise again",
                is_warning=True,
            )
        )
    return notes


def _oddities(state_dict: Mapping[str, np.ndarray]) -> list[Note]:
    notes = []
    if not any(name.endswith("num_batches_tracked") for name in state_dict):
        notes.append(
            Note("there is no num_batches_tracked (PyTorch before 0.4.1, or frozen norms); the counters start at 0")
        )
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
    decided: dict[str, Any] = {
        "names": weights.names,
        "options": arithmetic_of(model, weights.identity.architecture),
        "doubts": [doubt.to_json() for doubt in weights.doubts],
    }
    if not path.suffix:
        pure = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
        kept = {"identity": vars(weights.identity), "origin": weights.origin, "metadata": weights.metadata} | decided
        write_orbax(path, pure, kept)
        return
    state_dict = to_torch(model, like=weights.state_dict)
    if path.suffix != ".safetensors":
        names = weights.names if weights.layout[0].kernels == "torch" else {}
        if original_names and names:
            state_dict = {key: state_dict[names[key]] for key in weights.origin}
        write_checkpoint(path, state_dict)
        return
    of_the_file = metadata_of(weights.identity.architecture, origin=weights.origin)
    of_the_file |= {key: json.dumps(value) for key, value in decided.items()}
    write_checkpoint(path, state_dict, weights.metadata | of_the_file)
