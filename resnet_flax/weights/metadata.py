"""What is kept beside weights, as text: its one writer and its one reader."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from parity.errors import ParityError
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.models import get_architecture

OF_THE_FILE = ("architecture", "origin", "names", "options", "doubts")
"""The keys that concern a file's entries; the others concern the use of its weights."""


def metadata_of(
    architecture: str,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    origin: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The text as {key: value}.

    Args:
        architecture: its name; an alias is written as the name it stands for.
        preprocessing: what images have to go through.
        class_names: of the logits.
        origin: {name: dtype} of every entry in the checkpoint that the weights first came from, in order.
        options: the arithmetic that the weights need (`resnet_flax.weights.arithmetic.arithmetic_of`).
    """
    text = {"architecture": get_architecture(architecture).name}
    if preprocessing is not None:
        text |= preprocessing.to_metadata()
    if class_names:
        text["class_names"] = json.dumps(list(class_names))
    if origin is not None:
        text["origin"] = json.dumps(dict(origin))
    if options is not None:
        text["options"] = json.dumps(dict(options))
    return text


@dataclass(frozen=True)
class Metadata:
    """Reads what `metadata_of` wrote; other keys are ignored, and what is missing is None.

    Raises:
        ParityError: where a value is asked for that cannot be read.
    """

    text: Mapping[str, str]

    @property
    def architecture(self) -> str | None:
        return self.text.get("architecture")

    @property
    def preprocessing(self) -> Preprocessing | None:
        with _named("preprocessing"):
            return Preprocessing.from_metadata(self.text)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        with _named("class_names"):
            names = json.loads(self.text.get("class_names", "null"))
            if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"it is {str(names)[:80]}, not a list of names")
            return None if names is None else tuple(names)

    @property
    def origin(self) -> dict[str, str] | None:
        """None also for a value that another program wrote under this name."""
        return self._json("origin", dict)

    @property
    def names(self) -> dict[str, str] | None:
        """{name in `origin`: torchvision's}."""
        return self._json("names", dict)

    @property
    def options(self) -> dict[str, Any] | None:
        """The arithmetic that the weights need."""
        return self._json("options", dict)

    @property
    def doubts(self) -> list[tuple[str, list[str]]]:
        """(what was assumed about it, the arguments of `ResNet` that settle it)."""
        with _named("doubts"):
            return [(str(text), [str(name) for name in by]) for text, by in self._json("doubts", list) or []]

    def _json(self, key: str, kind: type) -> Any:
        try:
            value = json.loads(self.text.get(key, ""))
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, kind) else None


@contextmanager
def _named(what: str) -> Generator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ParityError(f"the {what} in the metadata of the weights cannot be read ({reason})") from error
