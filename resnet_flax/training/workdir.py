"""The directory of a run: its files by name, its lock, and the run it holds."""

from __future__ import annotations

import errno
import fcntl
import json
import platform
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from parity.conversion.orbax import require_orbax_name
from resnet_flax.data import Source
from resnet_flax.data.specs import absolute
from resnet_flax.errors import UserError
from resnet_flax.training.class_weights import BALANCED
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.saved_config import as_json, differences, from_json

RUNS = Path("runs")
LIBRARIES = ("resnet-flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
WEIGHTS = {"model": "best.safetensors", "ema": "best_ema.safetensors"}


class Workdir:
    """A run's directory, which may not exist yet.

    Attributes:
        path: as given.
        config: every setting, and the data and versions that the run started with; without it there is no run.
        checkpoints: one directory per step.
        metrics: one JSON object per line.
        curves, confusion: plots.
        evaluation: the result of `--evaluate`.
        tensorboard, profile: directories for TensorBoard and xprof.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.confusion = self.path / "confusion.png"
        self.evaluation = self.path / "evaluation.json"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self._is_new = False

    def __str__(self) -> str:
        return str(self.path)

    def weights(self, which: str) -> Path:
        """The file of the best weights, of the "model" or of its moving average, "ema"."""
        return self.path / WEIGHTS[which]

    @property
    def has_run(self) -> bool:
        return self.config.exists()

    def create(self) -> None:
        """Makes the directory; raises UserError if that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create the directory {self}: {error.strerror}; choose another --workdir"
            ) from error

    def claim(self, config: TrainConfig, source: Source) -> None:
        """Makes the directory that of a new run, by writing config.json.

        Raises:
            UserError: if another run has claimed it since it was chosen, or it cannot be written to.
        """
        self._is_new = not self.path.exists()
        self.create()
        content = {
            "config": as_json(config),
            "data": {"images": len(source), "class_names": list(source.class_names)},
            "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }
        try:
            file = self.config.open("x")
        except FileExistsError as error:
            raise UserError(f"another run has just claimed {self}; start this one again") from error
        except OSError as error:
            raise UserError(f"cannot write to {self}: {error.strerror}; choose another --workdir") from error
        try:
            with file:
                file.write(json.dumps(content, indent=2) + "\n")
        except OSError:  # a full disk: an incomplete file would block the workdir for good
            self.config.unlink()
            raise

    def release(self) -> None:
        """Undoes `claim`, for a run that has left nothing to resume."""
        self.config.unlink(missing_ok=True)
        if self._is_new:
            shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keeps other processes from training here; the lock ends with the process, however that ends.

        Raises:
            UserError: if another process has the lock.
        """
        with self.config.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise UserError(f"another process is training in {self}; wait for it to end, or stop it") from error
                # A file system without locks: the run continues without one.
            yield

    def load_config(self) -> TrainConfig:
        """The configuration of the run.

        Raises:
            UserError: if there is no run here.
        """
        if not self.has_run:
            raise UserError(f"nothing to resume: {self} has no run (no config.json)")
        return from_json(self._saved()["config"])

    def _saved(self) -> dict[str, Any]:
        return json.loads(self.config.read_text())

    def check_same_run(self, config: TrainConfig) -> None:
        """Raises UserError if the run has other settings, apart from `RunConfig` and the directory of the data."""
        if changed := differences(self.load_config(), config):
            raise UserError(
                f"the run in {self} has other settings ({'; '.join(changed)}); use the same, or start a new run"
            )

    def check_same_data(self, source: Source) -> None:
        """Raises UserError if the number of training images or the classes have changed since the run started."""
        then = self._saved().get("data")
        if then is None:  # a run of an earlier version
            return
        images, classes = then["images"], then["class_names"]
        changed = [] if images == len(source) else [f"{images:,} images then, {len(source):,} now"]
        for word, names in (
            ("missing classes", set(classes) - set(source.class_names)),
            ("new classes", set(source.class_names) - set(classes)),
        ):
            changed += [f"{word}: {', '.join(sorted(names)[:5])}"] if names else []
        if not changed and classes != list(source.class_names):
            changed = ["the order of the classes"]
        if changed:
            raise UserError(
                f"{source.spec} has changed since the run in {self} started ({'; '.join(changed)}); restore it, or "
                f"start a new run from these weights with --weights {self.weights('model')}"
            )


def runs_of(recipe: str) -> list[Workdir]:
    """The default workdirs of a recipe's runs, oldest first."""
    paths = [path for path in RUNS.glob(f"{recipe}-*") if re.fullmatch(rf"{re.escape(recipe)}-\d+", path.name)]
    return [Workdir(path) for path in sorted(paths, key=_number)]


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def latest_run() -> Workdir:
    """The default workdir of the most recent run, of any recipe.

    Raises:
        UserError: if there is none.
    """
    files = sorted(RUNS.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(f"nothing to resume: there is no run in {RUNS}/; pass its directory as --workdir")
    return Workdir(files[-1].parent)


def choose_workdir(config: TrainConfig) -> tuple[TrainConfig, Workdir]:
    """The workdir: the given one, a new runs/RECIPE-N, or to resume the latest of these; and the configuration with it.

    The other paths in the configuration become absolute: the run may be resumed from another directory.

    Raises:
        UserError: if a new run would go where another is, or there is nothing to resume.
        ParityError: if checkpoints cannot be stored under that name.
    """
    run = config.run
    if run.workdir is not None:
        workdir = Workdir(run.workdir)
    elif run.distributed:
        raise UserError("--distributed needs a --workdir that all hosts share")
    else:
        runs = runs_of(config.recipe)
        if run.resume and not runs:
            raise UserError(f"nothing to resume: there is no {RUNS / config.recipe}-*; pass its directory as --workdir")
        number = _number(runs[-1].path) if runs else 0
        workdir = runs[-1] if run.resume else Workdir(RUNS / f"{config.recipe}-{number + 1}")
    require_orbax_name(workdir.path)
    if run.resume:
        workdir.load_config()
    elif workdir.has_run:
        raise UserError(f"{workdir} already has a run; resume it (--resume) or choose another --workdir")
    data, model = config.data, config.model
    data_dir = data.data_dir and data.data_dir.expanduser().absolute()
    if model.weights and Path(model.weights).exists():
        model = replace(model, weights=str(Path(model.weights).absolute()))
    classes = data.source.classes and data.source.classes.expanduser().absolute()
    source = replace(data.source, classes=classes)
    data = replace(data, data=absolute(data.data), data_dir=data_dir, source=source)
    loss = config.loss
    if loss.class_weights not in (None, BALANCED):
        loss = replace(loss, class_weights=str(Path(loss.class_weights).expanduser().absolute()))
    return replace(config, data=data, model=model, loss=loss, run=replace(run, workdir=workdir.path)), workdir
