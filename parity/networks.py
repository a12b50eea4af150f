"""Networks that `python -m parity` knows by name: families, registered through the entry-point group `parity.networks`.

A distribution registers one in its pyproject.toml:

    [project.entry-points."parity.networks"]
    my_family = "my_package.my_module:FAMILY"

where FAMILY has the members of `Family`. Nothing of this package has to be imported for it.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parity.errors import ParityError, UsageError
from parity.registry import registered


class NamedPair(Protocol):
    """A network in Flax and its PyTorch original.

    Attributes:
        flax_model, torch_model: the two.
        channels: of the images that they take.
        num_classes: of the labels that they are trained with.
        train: the family's own training loop for the check "trajectory", or None; see `parity.check`.
    """

    flax_model: Any
    torch_model: Any
    channels: int
    num_classes: int
    train: Callable | None

    def read_image(self, path: Path, batch: int, size: int) -> np.ndarray:
        """float32 (batch, size, size, channels) cut from an image file and prepared as the network expects."""
        ...

    def batches(self, steps: int, batch: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Real (images, labels) for the check "trajectory"."""
        ...


class Weights(Protocol):
    """A checkpoint that a family has identified.

    Attributes:
        origin: {name: dtype} of every entry as it was in the file.
        notes: what was noticed while reading, one sentence each.
        in_channels: of the images that the network takes.
        image_size: the height and width in pixels of the images that it is for.
        decided: {option: value} of the network, of what its weights do not show, as far as it is known.
    """

    origin: Mapping[str, str]
    notes: Iterable[Any]
    in_channels: int
    image_size: int
    decided: Mapping[str, Any]

    def describe(self) -> str:
        """What it holds, in a few words."""
        ...

    def rows(self) -> list[tuple[str, str]]:
        """(heading, text) for everything that is known of it; raises unless every entry fits."""
        ...

    def named(self, name: str) -> "Weights":
        """The same as the weights of that network; a UsageError if they do not fit it."""
        ...

    def alternatives(self) -> Mapping[str, Sequence[Any]]:
        """{option: values} with which the same weights are another network than the plain one; values fit into JSON."""
        ...

    def links(self, options: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
        """The network with these options as NNX modules, each of which takes the output of the one before.

        Each comes with the path before its modules' own names. Modules of two networks that compute the same have equal
        graphs (`nnx.split`). A UserError for options that exclude each other.
        """
        ...

    def used(self, **given: Any) -> "Weights":
        """The same with these fields of the family's `Use` kept beside them; a UsageError if they do not fit."""
        ...

    def write(self, path: Path, *, original_names: bool) -> None:
        """Writes them through the Flax model, in the format of the path's ending."""
        ...


class Family(Protocol):
    """Networks that are built, and whose checkpoints are recognised, by the same code.

    Attributes:
        Options: a dataclass of what else can be chosen about a network; each field becomes an option of
            `python -m parity check NAME`.
        Use: a dataclass of what may be kept beside its weights about their use, None where it is not given; each field
            becomes an option of `python -m parity convert`. A family may lack it, and then `Weights.used`.
    """

    Options: Any
    Use: Any

    def names(self) -> Collection[str]:
        """What its networks are called."""
        ...

    def pair(self, name: str, options: Any, *, weights: Path | None = None) -> NamedPair:
        """Both networks, with a checkpoint's weights; without one the Flax model may be abstract (`nnx.eval_shape`)."""
        ...

    def identify(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Which of its networks has a state_dict of these shapes, in a few words; a UsageError if none has."""
        ...

    def read(self, source: Path | Mapping[str, Any], prefix: str | None = None) -> Weights:
        """A checkpoint of one of its networks, or a state_dict; a UsageError if it is none or cannot be read.

        `prefix` is what the names of the wanted network begin with, in a file that holds several.
        """
        ...


def family_of(name: str) -> Family:
    """The family that has a network of that name.

    Raises:
        ParityError: if none has; the message has the nearest names, and the families that could not be loaded.
    """
    found = registered()
    for family in found.families.values():
        if name in family.names():
            return family
    known = [known for family in found.families.values() for known in family.names()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    some = (
        f"registered are {len(known)}, such as {', '.join(known[:3])}" if known else "no networks are registered here"
    )
    hints = [f"did you mean {', '.join(near)}?" if near else some]
    if Path(name).exists():
        hints = [f"it is a file: give a network's name, and the file with --weights {name}"]
    raise ParityError("; ".join([f"no network named {name!r}", *hints, *found.failures]))


def named_pair(name: str, *, weights: Path | None = None, seed: int = 0, **options: Any) -> NamedPair:
    """A registered network in both frameworks, with a checkpoint's weights or random ones that hide nothing.

    Args:
        name: what it is registered as.
        weights: a file or directory that its family reads.
        seed: of the random weights.
        options: fields of the family's `Options`.

    Raises:
        UsageError: if the name is unknown, or the weights cannot be read or are of another network.
    """
    from parity.sides.random_weights import randomize

    family = family_of(name)
    pair = family.pair(name, family.Options(**options), weights=weights)
    if weights is None:
        randomize(pair.flax_model, pair.torch_model, seed=seed)
    return pair


def identified(source: Path | Mapping[str, Any], prefix: str | None = None) -> Weights:
    """The checkpoint or state_dict, as the family that recognises it reads it; `prefix` as in `Family.read`.

    Raises:
        UsageError: if none does; where only one family is installed, with its own message.
    """
    found, errors = registered(), {}
    for name, family in found.families.items():
        try:
            return family.read(source) if prefix is None else family.read(source, prefix)
        except UsageError as error:
            errors[name] = error
    if len(errors) == 1:
        raise next(iter(errors.values()))
    reasons = [f"{name}: {error}" for name, error in errors.items()] or ["no networks are registered here"]
    what = "the state_dict" if isinstance(source, Mapping) else source
    raise ParityError(f"{what} was not recognised; " + "; ".join([*reasons, *found.failures]))
