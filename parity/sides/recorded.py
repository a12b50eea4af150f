"""A reference that another process wrote to a file: what it gave, and its noise floors, without the network.

The file is a safetensors file. Its metadata hold the format's name, the number of its schema and one JSON object,
"about"; its tensors are `inputs/NAME`, `targets/NAME`, `state/NAME`, `pass/KEY/GROUP/NAME` and
`step/NUMBER/GROUP/NAME`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.conversion.checkpoints import RECORDING as FORMAT
from parity.conversion.checkpoints import read_checkpoint
from parity.errors import ParityError
from parity.sides.arguments import map_arrays, named_arrays
from parity.sides.base import (
    GROUPS,
    LOSS,
    OUTPUT,
    PLAIN,
    AnsweredByRunning,
    Arrangement,
    Arrays,
    Loss,
    Run,
    Side,
    Train,
)
from parity.sides.optimizers import Moments, Optimizer

SCHEMA = "1"


def digest(inputs: Any) -> str:
    """SHA-256 of an array's type, shape and values; of several in tuples and dicts, and of what is beside them."""
    whole = hashlib.sha256()
    for name, array in named_arrays(inputs).items():
        whole.update(f"{name}{array.dtype.str}{array.shape}".encode() + array.tobytes())
    whole.update(json.dumps(structure(inputs)).encode())
    return whole.hexdigest()


def structure(tree: Any, name: str = "") -> Any:
    """Nested tuples and dicts of arrays and Python's own values as JSON, without the arrays' values."""
    path = f"{name}." if name else ""
    if isinstance(tree, Mapping):
        return {"dict": {str(key): structure(child, f"{path}{key}") for key, child in tree.items()}}
    if isinstance(tree, tuple):
        return {"tuple": [structure(child, f"{path}{index}") for index, child in enumerate(tree)]}
    return {"array": name} if named_arrays(tree) else {"value": tree}


def rebuilt(built: Mapping[str, Any], arrays: Arrays) -> Any:
    """The inverse of `structure`, with the arrays of those names."""
    if "dict" in built:
        return {key: rebuilt(child, arrays) for key, child in built["dict"].items()}
    if "tuple" in built:
        return tuple(rebuilt(child, arrays) for child in built["tuple"])
    return arrays[built["array"]] if "array" in built else built["value"]


def weights_digest(array: np.ndarray) -> str:
    """The digest of a parameter or statistic, whatever its type: float32 values are the same in float64."""
    kind = np.float64 if array.dtype.kind not in "iub" else np.int64
    return digest(array.astype(kind))


def described(optimizer: Optimizer) -> dict[str, Any]:
    """Its settings; those that are functions are only known to be given."""
    plain = str | int | float | None
    return {name: value if isinstance(value, plain) else "given" for name, value in vars(optimizer).items()}


class Recording:
    """The contents of a file.

    Attributes:
        path: the file.
        about: what was recorded, by whom and how; see `parity.record`.
        tensors: {name in the file: array}.
    """

    def __init__(self, path: Path, about: dict[str, Any], tensors: Arrays):
        self.path, self.about, self.tensors = path, about, tensors

    @classmethod
    def read(cls, path: str | Path) -> "Recording":
        """Reads a file.

        Raises:
            ParityError: if it is none, or damaged, or of a later schema.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ParityError(f"{path}: a recording's name ends in .safetensors")
        checkpoint = read_checkpoint(path)
        if checkpoint.metadata.get("format") != FORMAT:
            raise ParityError(f"{path} is a checkpoint, not a recording; parity.record writes recordings")
        if (schema := checkpoint.metadata.get("schema")) != SCHEMA:
            raise ParityError(f"{path} has schema {schema} of recordings, and this version reads schema {SCHEMA}")
        try:
            about = json.loads(checkpoint.metadata["about"])
            return cls(path, about, {name: checkpoint.tensors[name] for name in about["tensors"]})
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ParityError(f"{path} is a damaged recording: {error} is missing or unreadable") from error

    @classmethod
    def of_outputs(cls, outputs: Mapping[str, Any], inputs: Any, candidate: Side) -> "Recording":
        """Outputs in eval mode and nothing else, as the candidate lays them out: without floors of their own.

        Raises:
            ParityError: if one is not an array.
        """
        inputs, targets = map_arrays(np.asarray, inputs), np.zeros(0)
        tensors = {f"inputs/{name}": array for name, array in named_arrays(inputs).items()} | {"targets/": targets}
        for name, output in outputs.items():
            own = name if name == OUTPUT or name.startswith(f"{OUTPUT}.") else f"{OUTPUT}.{name}"
            tensors[f"pass/eval 1/outputs/{own}"] = np.asarray(output)
        one = {"mode": "eval", "inputs": digest(inputs), "floors": {}}
        about = {
            "network": "the outputs given",
            "checks": ["forward"],
            "seed": None,
            "settings": {},
            "loss": "default",
            "optimizer": described(Optimizer()),
            "framework": "a reference",
            "channels": candidate.channels,
            "device": "",
            "precision": candidate.precision,
            "parameters": list(candidate.parameters),
            "trained": list(candidate.trained),
            "takes_tokens": True,
            "has_train_mode": False,
            "shapes": candidate.shapes(),
            "digests": {name: weights_digest(array) for name, array in candidate.state().items()},
            "mode_arguments": {},
            "given": {"inputs": structure(inputs), "targets": structure(targets)},
            "passes": {"eval 1": one},
            "steps": [],
        }
        return cls(Path("the outputs given"), about, tensors)

    @property
    def __name__(self) -> str:
        return self.about["network"]

    def provenance(self) -> dict[str, Any]:
        """Where the reference was made, for a report's settings."""
        return {"recording": str(self.path), "recorded with": self.about["settings"], "seed": self.about["seed"]}

    def optimizer(self, given: "Optimizer | str | None") -> Optimizer:
        """The optimiser of the recorded steps.

        Raises:
            ParityError: if the one given has other settings, or none is and the recorded one was a function.
        """
        recorded = self.about["optimizer"]
        if given is None:
            if functions := [name for name, value in recorded.items() if value == "given"]:
                if self.about["steps"]:
                    raise ParityError(
                        f"{self.path} was recorded with an optimiser whose {', '.join(functions)} no file can hold: "
                        "pass optimizer="
                    )
                return Optimizer()
            return Optimizer(**recorded)
        given = Optimizer(given) if isinstance(given, str) else given
        others = described(given)
        if different := [name for name in others if self.about["steps"] and others[name] != recorded[name]]:
            name = different[0]
            raise ParityError(
                f"{self.path} was recorded with an optimiser of {name} {recorded[name]}, found {others[name]}"
            )
        return given

    def require(self, checks: Sequence[str], loss: Any) -> None:
        """Raises ParityError for a check that the file does not serve, or a loss that is not known."""
        known = self.about["checks"]
        if missing := [name for name in checks if name not in known]:
            raise ParityError(f"{self.path} was not recorded for {', '.join(missing)}, but for {', '.join(known)}")
        has_loss = self.about["loss"] == "given"
        if {"gradients", "activation_gradients", "optimizer"} & set(checks) and has_loss != (loss is not None):
            raise ParityError(
                f"{self.path} was recorded with "
                + ("a loss of its own, which no file can hold: pass loss=" if loss is None else "the default loss")
            )

    def notes(self, state: Arrays) -> list[str]:
        """Whether the candidate has the weights that were recorded."""
        known = self.about["digests"]
        different = [name for name, array in state.items() if weights_digest(array) != known.get(name)]
        if not different:
            return []
        return [
            f"{len(different)} of {len(state)} parameters and statistics are not those recorded (SHA-256), "
            f"{different[0]} first"
        ]

    def part(self, prefix: str) -> Arrays:
        """The tensors under "PREFIX/", by the rest of their names, in the order in which they were computed."""
        start = f"{prefix}/"
        return {name.removeprefix(start): array for name, array in self.tensors.items() if name.startswith(start)}

    def given(self, name: str) -> Any:
        """The "inputs" or the "targets", as they were."""
        return rebuilt(self.about["given"][name], self.part(name))


class RecordedSide(AnsweredByRunning):
    """The reference of a recording: it answers what was asked when it was made, and refuses anything else."""

    arrangements: Sequence[Arrangement] = ()  # their floors are in the file

    def __init__(self, recording: Recording, precision: str):
        about = recording.about
        if about["precision"] != precision:
            raise ParityError(
                f"{recording.path} was recorded in {about['precision']}: check with precision={about['precision']!r}"
            )
        self.recording, self.precision = recording, precision
        self.framework, self.channels, self.device = about["framework"], about["channels"], about["device"]
        self.parameters, self.trained = about["parameters"], about["trained"]
        self.constants = about.get("constants", ())  # absent from older files
        self.takes_tokens, self.has_train_mode = about["takes_tokens"], about["has_train_mode"]
        self.modes = {one["mode"] for one in about["passes"].values()}
        self.step: int | None = None  # the optimiser step after which it stands

    def at(self, precision: str) -> "RecordedSide":
        """Itself.

        Raises:
            ParityError: for a precision that was not recorded.
        """
        return RecordedSide(self.recording, precision)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in self.recording.about["shapes"].items()}

    def state(self) -> Arrays:
        """Parameters and statistics, as far as the file has them: it may hold their digests only."""
        prefix = "state" if self.step is None else f"step/{self.step}/state"
        arrays = self.recording.part(prefix)
        return {
            name: np.array(array, np.float64 if array.dtype.kind == "f" else None) for name, array in arrays.items()
        }

    def load(self, state: Arrays) -> None:
        """Nothing can be put into a recording; it stands again where it began."""
        self.step = None

    def array(self, array: Any) -> Any:
        return array

    def mode_arguments(self, inputs: Any) -> dict[str, bool]:
        return self.recording.about["mode_arguments"]

    def computes_alike_in_both_modes(self, inputs: Any) -> bool:
        """As recorded; a network that was recorded in one mode only is not known to differ in the other."""
        return len(self.modes) < 2 or super().computes_alike_in_both_modes(inputs)

    def run(
        self,
        inputs: Any,
        targets: Any = None,
        loss: Loss | None = None,
        *,
        train: bool,
        activation_gradients: bool = False,
        arrangement: Arrangement = PLAIN,
        record: bool = True,
    ) -> Run:
        """The recorded pass over these very inputs.

        Raises:
            ParityError: if there is none.
        """
        mode = "train" if train else "eval"
        passes = self.recording.about["passes"]
        wanted = digest(inputs)
        key = next((key for key, one in passes.items() if one["mode"] == mode and one["inputs"] == wanted), None)
        if key is None:
            raise ParityError(
                f"{self.recording.path} has no pass in {mode} mode over these inputs (it has {', '.join(passes)}); "
                "leave the inputs out to take those that were recorded"
            )
        groups = {group: self.recording.part(f"pass/{key}/{group}") for group in GROUPS}
        its_loss = self.recording.part(f"pass/{key}/loss").get(LOSS, np.nan)
        return Run(**groups, loss=float(its_loss), floors=passes[key]["floors"])

    def trainer(self, optimizer: Optimizer) -> "RecordedTrainer":
        return RecordedTrainer(self)

    def train_with(self, train: Train, batches: Sequence[tuple[Any, Any]], optimizer: Optimizer) -> list[float]:
        raise ParityError(f"{self.recording.path} is a recording: nothing can be trained")


class RecordedTrainer:
    """The optimiser steps of a recording."""

    def __init__(self, side: RecordedSide):
        self.side = side

    def step(self, step: int, inputs: np.ndarray, targets: Any, loss: Loss, arrangement: Arrangement = PLAIN) -> Run:
        """Stands after that step.

        Raises:
            ParityError: if it was not recorded.
        """
        known = self.side.recording.about["steps"]
        if step >= len(known):
            count = len(known)
            raise ParityError(f"{self.side.recording.path} has {count} optimiser steps: check with steps={count}")
        self.side.step = step
        return Run({}, {}, {}, floors=known[step]["floors"])

    def moments(self) -> Moments:
        kept: Moments = {}
        for name, array in self.side.recording.part(f"step/{self.side.step}/moments").items():
            moment, _, parameter = name.partition("/")
            kept.setdefault(parameter, {})[moment] = array
        return kept

    def take_moments(self, kept: Moments, step: int) -> None:
        """A recording's are its own."""
