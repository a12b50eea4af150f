"""The directory of a run: its files by name, its lock, and the run it holds."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from parity.conversion.files import read_regular, remove_incomplete, tidied, write_text
from parity.conversion.orbax import require_orbax_name
from parity.errors import ParityError
from resnet_flax.data import Source
from resnet_flax.data.specs import absolute
from resnet_flax.errors import UserError
from resnet_flax.training.class_weights import BALANCED
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.saved_config import as_json, differences, from_json

RUNS = Path("runs")
LIBRARIES = ("resnet-flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SHARED_SECONDS = 60.0  # attributes are cached so long by NFS
LARGEST_CONFIG = 2**26  # bytes of config.json, which has the names of all classes
WEIGHTS = {"model": "best.safetensors", "ema": "best_ema.safetensors"}


class Workdir:
    """A run's directory, which may not exist yet.

    Attributes:
        path: as given, without `a/..`.
        config: every setting, and the data and versions that the run started with; without it there is no run.
        checkpoints: one directory per step.
        metrics: one JSON object per line.
        curves, confusion: plots.
        evaluation: the result of `--evaluate`.
        profile: a directory for xprof.
        lock: held by the process that trains here.
    """

    def __init__(self, path: Path | str):
        self.path = tidied(path)
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.confusion = self.path / "confusion.png"
        self.evaluation = self.path / "evaluation.json"
        self.profile = self.path / "profile"
        self.lock = self.path / ".lock"
        self._is_new = False

    def __str__(self) -> str:
        return str(self.path)

    def weights(self, which: str) -> Path:
        """The file of the best weights, of the "model" or of its moving average, "ema"."""
        return self.path / WEIGHTS[which]

    @property
    def has_run(self) -> bool:
        return self.config.exists()

    def stored_steps(self) -> list[int]:
        """The steps of the checkpoints here, by the names of their directories."""
        names = [path.name for path in self.checkpoints.glob("*")] if self.checkpoints.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"\d{1,18}", name))

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
            write_text(self.config, json.dumps(content, indent=2) + "\n", new=True)
        except FileExistsError as error:
            raise UserError(f"another run has just claimed {self}; start this one again") from error
        except ParityError as error:
            if self._is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            raise UserError(f"{error.message}; choose another --workdir") from error

    def require_shared(self) -> None:
        """Waits until the config.json that the first host has written is seen here: NFS shows it late.

        Raises:
            UserError: if that takes longer than `SHARED_SECONDS`.
        """
        until = time.monotonic() + SHARED_SECONDS
        while not self.has_run:
            if time.monotonic() > until:
                raise UserError(
                    f"{self} is not the directory in which host 0 has written config.json; --distributed needs a "
                    "--workdir that all hosts share"
                )
            time.sleep(0.1)

    def release(self) -> None:
        """Undoes `claim`, for a run that has left nothing to resume."""
        self.config.unlink(missing_ok=True)
        if self._is_new:
            shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keeps other processes from training here; the lock ends with the process, however that ends.

        What a run that was killed has left half written is removed.

        Raises:
            UserError: if another process has the lock.
        """
        try:
            file = open(self.lock, "a", opener=_at_once)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"cannot write to {self}: {error.strerror}; copy it to where you may write") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise UserError(f"another process is training in {self}; wait for it to end, or stop it") from error
                # A file system without locks: the run continues without one.
            remove_incomplete(self.path)
            yield

    def load_config(self) -> TrainConfig:
        """The configuration of the run.

        Raises:
            UserError: if there is no run here, or config.json is damaged.
        """
        if not self.has_run:
            raise UserError(f"nothing to resume: {self} has no run (no config.json)")
        return self._saved()[0]

    def _saved(self) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration, and all of config.json."""
        try:
            content = json.loads(read_regular(self.config, LARGEST_CONFIG))
            return from_json(content["config"]), content
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(self._damaged(f"lacks {error}" if isinstance(error, KeyError) else str(error))) from error

    def _damaged(self, reason: str) -> str:
        best = self.weights("model")
        way_on = f"start a new run from its weights with --weights {best}" if best.exists() else "start a new run"
        return f"{self.config} is damaged ({reason}); restore it from a copy, or {way_on} in another --workdir"

    def check_same_run(self, config: TrainConfig) -> None:
        """Raises UserError if the run has other settings.

        `RunConfig`, the number of epochs and the directory of the data may differ.
        """
        if changed := differences(self.load_config(), config):
            raise UserError(
                f"the run in {self} has other settings ({'; '.join(changed)}); use the same, or start a new run from "
                f"its weights with --weights {self.weights('model')}"
            )

    def change_epochs(self, epochs: int) -> None:
        """Sets the number of epochs in config.json, for this and later processes of the run."""
        config, content = self._saved()
        content["config"] = as_json(replace(config, schedule=replace(config.schedule, epochs=epochs)))
        write_text(self.config, json.dumps(content, indent=2) + "\n")

    @property
    def devices(self) -> int | None:
        """The number of devices that the run started with, where config.json has it."""
        devices = self._saved()[1].get("devices")
        return devices if isinstance(devices, int) else None

    def check_same_data(self, source: Source) -> None:
        """Raises UserError if the number of training images or the classes have changed since the run started."""
        then = self._saved()[1].get("data")
        if then is None:  # a run of an earlier version
            return
        try:
            images, classes = int(then["images"]), [str(name) for name in then["class_names"]]
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                self._damaged('its "data" is not {"images": NUMBER, "class_names": [NAME, ...]}')
            ) from error
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


def _at_once(path: str, flags: int) -> int:
    """Opens a file to write to it; what should have been a file and is a pipe fails instead of waiting for a reader."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


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
    elif steps := workdir.stored_steps():
        raise UserError(
            f"{workdir} has checkpoints (the last of step {steps[-1]}) and no config.json; restore that from a copy, "
            "or choose another --workdir"
        )
    data, model = config.data, config.model
    data_dir = data.data_dir and data.data_dir.expanduser().absolute()
    if model.weights and Path(model.weights).exists():
        model = replace(model, weights=str(Path(model.weights).absolute()))
    files = {name: getattr(data.source, name) for name in ("classes", "labels")}
    source = replace(data.source, **{name: path and path.expanduser().absolute() for name, path in files.items()})
    data = replace(data, data=absolute(data.data), data_dir=data_dir, source=source)
    loss = config.loss
    if loss.teacher and Path(loss.teacher).exists():
        loss = replace(loss, teacher=str(Path(loss.teacher).absolute()))
    if loss.class_weights not in (None, BALANCED):
        loss = replace(loss, class_weights=str(Path(loss.class_weights).expanduser().absolute()))
    return replace(config, data=data, model=model, loss=loss, run=replace(run, workdir=workdir.path)), workdir
