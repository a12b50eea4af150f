"""The directory of a run: which one, whose it is, and what lies in it."""

from __future__ import annotations

import errno
import fcntl
import json
import platform
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from parity.conversion.orbax import require_orbax_name
from resnet_flax.data import Source, transforms
from resnet_flax.data.source import LOCATED, absolute
from resnet_flax.errors import UserError
from resnet_flax.training.config import TrainConfig

RUNS = Path("runs")
LIBRARIES = ("resnet-flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def runs_of(recipe: str) -> list[Path]:
    """The default workdirs of a recipe's runs, oldest first."""
    found = [path for path in RUNS.glob(f"{recipe}-*") if re.fullmatch(rf"{re.escape(recipe)}-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def latest_run() -> Path:
    """The default workdir that was begun last, whatever its recipe.

    Raises:
        UserError: if there is none.
    """
    found = sorted(RUNS.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"nothing to resume: there is no run in {RUNS}/; name one with --workdir")
    return found[-1].parent


def choose_workdir(config: TrainConfig) -> TrainConfig:
    """The configuration with a workdir: the given one, a new runs/RECIPE-N, or to resume the latest of these.

    Its other paths become absolute: the run may be resumed from another directory.

    Raises:
        UserError: if a new run would go where another lies, or there is nothing to resume.
        ParityError: if checkpoints cannot be kept under that name.
    """
    run = config.run
    workdir = run.workdir
    if workdir is None:
        if run.distributed:
            raise UserError("--distributed needs a --workdir that all hosts share")
        runs = runs_of(config.recipe)
        if run.resume and not runs:
            raise UserError(f"nothing to resume: there is no {RUNS / config.recipe}-*; name the run with --workdir")
        number = int(runs[-1].name.rpartition("-")[2]) if runs else 0
        workdir = runs[-1] if run.resume else RUNS / f"{config.recipe}-{number + 1}"
    require_orbax_name(workdir)
    if run.resume:
        load_config(workdir)
    if not run.resume and (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds another run; go on with it (--resume) or choose another --workdir")
    data, model = config.data, config.model
    data_dir = data.data_dir and data.data_dir.expanduser().absolute()
    if model.weights and Path(model.weights).exists():
        model = replace(model, weights=str(Path(model.weights).absolute()))
    data = replace(data, data=absolute(data.data), data_dir=data_dir)
    return replace(config, data=data, model=model, run=replace(run, workdir=workdir))


def save_config(config: TrainConfig, source: Source) -> None:
    """Writes config.json: every setting, and the data and versions the run began with. With it the workdir is taken.

    Raises:
        UserError: if another run has taken it since it was chosen.
    """
    workdir = config.run.workdir
    assert workdir is not None
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {workdir}: {error.strerror}; choose another --workdir") from error
    content = {
        "config": as_json(config),
        "data": {"images": len(source), "class_names": list(source.class_names)},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
    path = workdir / "config.json"
    try:
        file = path.open("x")
    except FileExistsError as error:
        raise UserError(f"{workdir} was taken by another run a moment ago; start this one again") from error
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir") from error
    try:
        with file:
            file.write(json.dumps(content, indent=2) + "\n")
    except OSError:  # a full disk: half a file would take the workdir for good
        path.unlink()
        raise


@contextmanager
def locked(workdir: Path) -> Generator[None]:
    """While in its context, no other process trains in `workdir`; the lock ends with the process, however it ends.

    Raises:
        UserError: if another does already.
    """
    with (workdir / "config.json").open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"another process is training in {workdir} at this moment; wait for its end, or stop it"
                ) from error
            # A file system without locks: the run goes on, unguarded.
        yield


def as_json(config: Any) -> Any:
    """A tree of dataclasses as JSON has it; a transform also tells its class."""
    if is_dataclass(config):
        tag = {"type": type(config).__name__} if type(config).__module__.endswith("transforms") else {}
        return tag | {field.name: as_json(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, tuple | list):
        return [as_json(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def load_config(workdir: Path) -> TrainConfig:
    """The configuration of the run in `workdir`.

    Raises:
        UserError: if there is none.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"nothing to resume: {workdir} holds no run (no config.json)")
    saved = json.loads(path.read_text())["config"]
    return _from_json(TrainConfig(), saved)


def _from_json(like: Any, value: Any) -> Any:
    """`as_json` undone; `like` is a dataclass of the type wanted, or anything where JSON says enough."""
    if isinstance(value, list):
        return tuple(_from_json(None, item) for item in value)
    if not isinstance(value, dict):
        return value
    if "type" in value:
        like = getattr(transforms, value["type"])()
    values = {name: _from_json(getattr(like, name), item) for name, item in value.items() if name != "type"}
    for name in ("workdir", "data_dir"):
        if values.get(name) is not None:
            values[name] = Path(values[name])
    return replace(like, **values)


def check_same_run(config: TrainConfig) -> None:
    """Raises UserError if the workdir's run has other settings, those of `RunConfig` and the data's place apart."""
    workdir = config.run.workdir
    assert workdir is not None
    saved, wanted = json.loads((workdir / "config.json").read_text())["config"], as_json(config)
    for settings in (saved, wanted):
        scheme = settings["data"]["data"].partition(":")[0]
        settings["data"] |= {"data_dir": None} | ({"data": f"{scheme}:"} if scheme in LOCATED else {})
    changed = [
        f"{_option(name)} {old} there, {new} here"
        for group in wanted
        if group != "run"
        for name, old, new in _differences(group, saved.get(group), wanted[group])
    ]
    if changed:
        raise UserError(f"{workdir} is a run with other settings ({'; '.join(changed)}); repeat them, or start anew")


def _differences(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [row for key in {**old, **new} for row in _differences(f"{name}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [(name.replace("_", "-"), old, new)]


def _option(name: str) -> str:
    """The option that sets a field such as `optimizer.learning-rate`."""
    group, _, option = name.partition(".")
    return {"recipe": "recipe", "model.name": "--model"}.get(name, f"--{option or group}")


def check_same_data(workdir: Path, source: Source) -> None:
    """Raises UserError if the training set is not as large, or not of the classes, as when the workdir's run began."""
    began = json.loads((workdir / "config.json").read_text()).get("data")
    if began is None:  # an earlier version's run
        return
    images, classes = began["images"], began["class_names"]
    changed = [] if images == len(source) else [f"{images:,} images then, {len(source):,} now"]
    for said, names in (
        ("no longer there", set(classes) - set(source.class_names)),
        ("new", set(source.class_names) - set(classes)),
    ):
        changed += [f"{said}: {', '.join(sorted(names)[:5])}"] if names else []
    if not changed and classes != list(source.class_names):
        changed = ["the classes are in another order"]
    if changed:
        raise UserError(
            f"{source.spec} has changed since the run in {workdir} began ({'; '.join(changed)}); restore it, or begin "
            f"a new run, with --weights {workdir / 'best.safetensors'} from what this one has learnt"
        )
