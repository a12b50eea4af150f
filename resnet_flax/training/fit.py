"""Training and evaluation from Python and notebooks: the loop, the settings and the files of `python train.py`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flax import nnx

from parity.conversion.naming import leaves
from resnet_flax.data import open_source
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet
from resnet_flax.text import PlainConsole
from resnet_flax.training.devices import open_devices
from resnet_flax.training.evaluation import Evaluation
from resnet_flax.training.loop import train
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.settings import configured
from resnet_flax.training.setup import Setup, facts_of, resolve
from resnet_flax.training.workdir import Workdir, choose_workdir
from resnet_flax.weights.identify import identify
from resnet_flax.weights.load import load_pretrained
from resnet_flax.weights.pretrained import Pretrained


@dataclass(frozen=True, repr=False)
class Result:
    """A run that has ended.

    Attributes:
        workdir: the directory with everything that the run has written.
        finished: whether it trained to its end; if it was interrupted, `fit(..., workdir=..., resume=True)` continues.
        history: one dict for each evaluation, in order: step, epoch, weights ("model" or "ema"), loss, accuracy, top5,
            macro_f1, train_loss, train_accuracy, learning_rate, seconds since the start.

    Examples:
        >>> import resnet_flax
        >>> result = resnet_flax.fit("test_resnet", "synthetic:8x8x1:64", epochs=1, batch_size=16, quiet=True)
        >>> [row["epoch"] for row in result.history]
        [1.0]
        >>> print(result.curves)
        runs/digits-1/curves.png
    """

    workdir: Path
    finished: bool
    history: list[dict[str, Any]]

    @property
    def weights(self) -> Path:
        """The file of the best weights, with preprocessing and class names."""
        return Workdir(self.workdir).weights("model")

    @property
    def curves(self) -> Path:
        """The plot of loss, accuracy and learning rate."""
        return Workdir(self.workdir).curves

    @property
    def metrics(self) -> Path:
        """One JSON object per line: the history, and rows of training between."""
        return Workdir(self.workdir).metrics

    @cached_property
    def best(self) -> Pretrained:
        """The best weights, ready to predict."""
        return load_pretrained(None, self.weights)

    def __repr__(self) -> str:
        own = [row for row in self.history if row["weights"] == "model" and row["accuracy"] is not None]
        best = max(own, key=lambda row: row["accuracy"], default=None)
        how = "finished" if self.finished else "interrupted"
        if best is None:
            return f"{how} before the first evaluation: {self.workdir}"
        return (
            f"{how}: best {best['split']} accuracy {best['accuracy']:.2%}, in epoch {best['epoch']:g}: {self.weights}"
        )


def fit(
    model: str | ResNet | Pretrained | None = None,
    data: str | None = None,
    *,
    recipe: str = "digits",
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Trains a network as `python train.py` does, and shows the same lines.

    Everything is written to `workdir`, from which the run can be resumed, here or by the command. JAX gets a
    compilation cache unless it has one, and on a CPU the process keeps the memory that it frees.

    Args:
        model: an architecture's name, or a network to start from, which is left as it is: `create_model(...,
            num_classes=N)` for data with N classes. None takes the recipe's.
        data: a spec such as "digits" or "folder:DIR"; None takes the recipe's.
        recipe: whose settings apply where none are given (`python train.py --list`).
        quiet: show nothing.
        settings: options of `python train.py`, with underscores: epochs=3, batch_size=64, learning_rate=0.1,
            optimizer="adamw", weights="DEFAULT", image_size=64, workdir="runs/mine", resume=True. `train_transform` and
            `eval_transform` are objects of `resnet_flax.data`.

    Raises:
        UserError: for settings or data that cannot be used, a network with other classes than the data's, or a loss
            that is not finite.

    Examples:
        >>> import resnet_flax
        >>> result = resnet_flax.fit("test_resnet", "digits", epochs=1, image_size=16, workdir="run", quiet=True)
        >>> result.finished
        True
        >>> print(result.weights)
        run/best.safetensors
    """
    network = model.model if isinstance(model, Pretrained) else model if isinstance(model, ResNet) else None
    name = model if network is None else _architecture_of(network)
    given: dict[str, Any] = {key: value for key, value in {"model": name, "data": data}.items() if value is not None}
    if network is not None:
        if settings.get("weights") is not None:
            raise UserError("weights= and a network that has its own; give the architecture's name with weights=")
        given["weights"] = None  # a recipe may have some
    config, workdir = choose_workdir(resolve(configured(recipe, {**settings, **given})))
    # In a notebook, plain text: rich's own output is a block of HTML for each line.
    console = PlainConsole(quiet=quiet, force_jupyter=False)
    status = train(config, console, loaded=None if network is None else nnx.clone(network))
    history = [row for row in read_metrics(workdir) if row["kind"] == "evaluation"]
    return Result(workdir.path, status == 0, history)


def evaluate(
    model: ResNet | Pretrained | str | os.PathLike,
    data: str,
    *,
    split: str = "val",
    batch_size: int = 256,
    preprocessing: Preprocessing | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluates a network on a split of a data set, each image once, in eval mode; the network is left as it is.

    Args:
        model: what `load_pretrained` returns, the file of weights, or a network with `preprocessing`.
        data: a spec such as "digits" or "folder:DIR".
        split: "train", "val" or "test".
        batch_size: images per step, over all devices; it does not change the result.
        preprocessing: in place of that of the weights.
        settings: options of `python train.py` about the data and the devices, with underscores: split_by, workers, ...

    Raises:
        UserError: if the network and the data have other numbers of classes or channels, or the preprocessing is not
            known.

    Examples:
        >>> import resnet_flax
        >>> from resnet_flax.data import EvaluationTransform, Preprocessing
        >>> model = resnet_flax.create_model("test_resnet", num_classes=10, in_channels=1)
        >>> preprocessing = Preprocessing(EvaluationTransform(16, 16), (0.5,), (0.5,))
        >>> evaluation = resnet_flax.evaluate(model, "digits", preprocessing=preprocessing)
        >>> evaluation.count, evaluation.confusion.shape
        (359, (10, 10))
    """
    if isinstance(model, str | os.PathLike):
        model = load_pretrained(None, model)
    network = model.model if isinstance(model, Pretrained) else model
    if preprocessing is None and isinstance(model, Pretrained):
        preprocessing = model.preprocessing
    if preprocessing is None:
        raise UserError(
            "how the images are prepared is not known: pass what load_pretrained returns, or preprocessing="
            "resnet_flax.data.Preprocessing(...)"
        )
    own = {
        "data": data,
        "batch_size": batch_size,
        "eval_transform": preprocessing.transform,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "exif_orientation": preprocessing.decoding.exif_orientation,
        "scale_16_bit": preprocessing.decoding.scale_16_bit,
    }
    config = resolve(configured("digits", {**own, **settings}))
    mesh = open_devices(config.run)
    test = open_source(config.data.data, split, data_dir=config.data.data_dir, options=config.data.source)
    for what, theirs, ours in (
        ("classes", test.num_classes, network.num_classes),
        ("channels", test.channels, network.in_channels),
    ):
        if theirs != ours:
            raise UserError(f"the network has {ours} {what} and {data} has {theirs}; evaluate on data of its own kind")
    setup = Setup(config, mesh, facts_of(test), nnx.clone(network))
    return setup.evaluate(setup.initial_arrays(), setup.evaluation_batches(test))


def _architecture_of(network: ResNet) -> str:
    return identify({leaf.torch_name: leaf.torch_shape for leaf in leaves(network)}).architecture
