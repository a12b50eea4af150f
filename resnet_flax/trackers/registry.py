"""The trackers by name, those of other packages among them, and a run's open ones."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from parity.conversion.files import write_text
from resnet_flax.errors import UserError
from resnet_flax.trackers.base import Open, TrackedRun, Tracker

GROUP = "resnet_flax.trackers"
ALWAYS = "tensorboard"
OWN: dict[str, tuple[str, str]] = {
    "tensorboard": ("resnet_flax.trackers.tensorboard", "TensorBoard"),
    "trackio": ("resnet_flax.trackers.trackio", "Trackio"),
    "wandb": ("resnet_flax.trackers.wandb", "Wandb"),
    "mlflow": ("resnet_flax.trackers.mlflow", "Mlflow"),
}
"""{name: (module, its class)}; each module imports its library, and names the extra."""


def find_trackers(names: Iterable[str]) -> dict[str, Open]:
    """{name: what opens it}: TensorBoard, then those named, each once.

    Beside `OWN` there is what packages register in the entry-point group `resnet_flax.trackers`: a callable that takes
    a `TrackedRun` and returns a `Tracker`.

    Raises:
        UserError: if there is none of that name, or another package's cannot be imported.
        MissingPackageError: if its library is not installed.
    """
    others = {point.name: point for point in entry_points(group=GROUP)}
    found: dict[str, Open] = {}
    for name in dict.fromkeys((ALWAYS, *names)):
        if name in OWN:
            module, kind = OWN[name]
            found[name] = getattr(importlib.import_module(module), kind)
        elif name in others:
            try:
                found[name] = others[name].load()
            except (ImportError, AttributeError) as error:
                raise UserError(f"--track {name} ({others[name].value}) cannot be loaded: {error}") from error
        else:
            near = difflib.get_close_matches(name, [*OWN, *others], n=1)
            way_on = f"did you mean {near[0]}?" if near else f"there are {', '.join([*OWN, *others])}"
            raise UserError(f"no tracker {name!r}; {way_on}")
    return found


class Trackers:
    """The open trackers of a run. One that fails is dropped with a note, and the run continues without it.

    Args:
        openers: of `find_trackers`.
        run: without an `id`: each tracker's is kept in the workdir's trackers.json.
        say: shows a note.

    Raises:
        UserError: if one cannot be opened for a run that has not begun; a resumed run continues without it.
    """

    def __init__(self, openers: Mapping[str, Open], run: TrackedRun, say: Callable[[str], None]):
        self._say = say
        self._open: dict[str, Tracker] = {}
        file = run.workdir / "trackers.json"
        ids = _read_ids(file)
        for name, opener in openers.items():
            try:
                tracker = opener(replace(run, id=ids.get(name)))
            except Exception as error:  # another library's, of any kind
                if not run.step:
                    self.close(finished=False)
                    raise UserError(
                        f"--track {name} cannot start: {_reason(error)}; mend that, or remove it"
                    ) from error
                self._note(name, "cannot continue", error)
                continue
            self._open[name] = tracker
            if tracker.id:
                ids[name] = tracker.id
        if ids:
            write_text(file, json.dumps(ids, indent=2) + "\n")

    @property
    def where(self) -> dict[str, str]:
        """{name: where its figures are to be seen}, of those that are open."""
        return {name: tracker.where for name, tracker in self._open.items()}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._each("has failed", lambda tracker: tracker.log(step, values))

    def close(self, *, finished: bool) -> None:
        self._each("has not kept everything", lambda tracker: tracker.close(finished=finished))
        self._open.clear()

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._open[name]
                self._note(name, what, error)

    def _note(self, name: str, what: str, error: Exception) -> None:
        self._say(f"note: {name} {what} ({_reason(error)}); metrics.jsonl has every row")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _read_ids(file: Path) -> dict[str, str]:
    """{tracker: id}, without what is damaged: such a run is tracked as a new one."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, str)}
