"""`python train.py --evaluate --weights W`: the accuracy of weights on the validation split, or that of --split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from parity.conversion.files import write_text
from parity.trimmed import Trimmed
from resnet_flax.data import Source, open_source
from resnet_flax.data.folder import FolderSource
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.data.real_labels import CLASSES, read_real_labels, real_accuracy, validation_numbers
from resnet_flax.data.source import SourceOptions
from resnet_flax.errors import UserError
from resnet_flax.figures import drawn
from resnet_flax.text import to_json
from resnet_flax.training.agreement import agree
from resnet_flax.training.config import DataConfig, TrainConfig
from resnet_flax.training.devices import describe, open_devices
from resnet_flax.training.evaluation import Evaluation
from resnet_flax.training.hosts import Hosts
from resnet_flax.training.plots import plot_confusion
from resnet_flax.training.recipes import DEFAULT, RECIPES
from resnet_flax.training.setup import Setup, facts_of, model_options, resolve
from resnet_flax.training.views import VIEWS
from resnet_flax.training.workdir import Workdir
from resnet_flax.weights.class_columns import columns_of, restricted
from resnet_flax.weights.load import load_pretrained, no_preprocessing
from resnet_flax.weights.pretrained import Pretrained

WORST = 20  # classes listed where there are many


def main(config: TrainConfig, console: Console, hosts: Hosts | None = None) -> int:
    """Prints top-1, top-5, loss, macro-F1 and each class's figures, and writes evaluation.json and confusion.png.

    They are written to --workdir; without it to the run that the weights are of, or else to the current directory.
    Transform, mean and standard deviation are those of the command line where they differ from the recipe's; otherwise
    those stored with the weights; otherwise the recipe's, or where none is named and the data are not the
    default recipe's, those assumed of the weights (torchvision's for ImageNet).

    Args:
        hosts: those of the job, where there are several.

    Raises:
        UserError: without weights, or for weights with another number of classes than the data.
    """
    given, config = config.data, resolve(config)
    if config.model.weights is None:
        raise UserError("--evaluate needs --weights: a file, or the name of published weights")
    mesh = open_devices(config.run)
    if jax.process_index() > 0:
        console.quiet = True
    test = _open(config, config.data.source)
    is_file = Path(config.model.weights).expanduser().exists()
    loaded = load_pretrained(
        None if is_file else config.model.name,
        config.model.weights,
        prefix=config.model.prefix,
        in_channels=test.channels,
        **model_options(config, mesh),
    )
    columns = columns_of(test.class_names, loaded.class_names, loaded.model.num_classes, config.run.synsets)
    if columns is not None:
        console.print(
            f"classes: the {test.num_classes:,} of {config.data.data} are outputs of {config.model.weights} by "
            f"{columns.how}; only these of its {loaded.model.num_classes:,} count",
            highlight=False,
            soft_wrap=True,
        )
        loaded = replace(loaded, model=restricted(loaded.model, columns.indices), class_names=test.class_names)
    if loaded.model.num_classes != test.num_classes:
        raise UserError(
            f"{config.model.weights} has {loaded.model.num_classes} classes and {config.data.data} has "
            f"{test.num_classes}; evaluate on the data it was trained on, or train a new head"
        )
    assumed = no_preprocessing(loaded.source)  # the line about the images has it
    for note in (*loaded.notes, *(_other_classes(config, loaded, test) if is_file else ())):
        if note != assumed:
            console.print(f"note: {note}", highlight=False, soft_wrap=True)
    test_options = config.data.source
    config = replace(
        config,
        data=_preprocessing(config, given, loaded),
        model=replace(config.model, name=loaded.architecture, freeze=()),
    )

    if config.data.source != test_options:
        test = _open(config, config.data.source)
    real = _real_labels(config, test)
    setup = Setup(config, mesh, facts_of(test), loaded.model)
    data = config.data
    for note in test.notes():
        console.print(f"note: {note}", soft_wrap=True)
    console.print(
        f"{loaded.architecture} from {loaded.source} on {data.data} {test.split} ({len(test):,} images), "
        f"{describe(mesh)}\n{test.split} is {test.origin}\n"
        f"images: {Preprocessing(data.eval_transform, data.mean, data.std)}"
        + ("" if loaded.says_preprocessing else " (the weights came with none)")
        + (f"\nviews: {VIEWS[data.tta]}; their probabilities are averaged" if data.tta != "none" else ""),
        highlight=False,
        soft_wrap=True,
    )
    if hosts:
        agree(hosts, setup, test, test)
    batches = setup.evaluation_batches(test)
    if not loaded.says_preprocessing:
        first = next(batches)
        if note := setup.doubt(first["image"], len(test)):
            console.print(f"warning: {note}", highlight=False, soft_wrap=True)
        batches = chain([first], batches)
    result = setup.evaluate(setup.initial_arrays(), batches)
    if jax.process_index() == 0:
        workdir = Workdir(config.run.workdir or _run_of(config.model.weights) or Path())
        workdir.create()
        _print(result, test, console)
        content = _as_json(result, test)
        if real is not None and result.predicted is not None:
            found = real_accuracy(result.predicted[: len(test)], *real)
            console.print(str(found), highlight=False, soft_wrap=True)
            content["real"] = found._asdict()
        write_text(workdir.evaluation, to_json(content, indent=2) + "\n")
        path = workdir.confusion
        title = f"{loaded.architecture} on {test.split}: {result.accuracy:.2%} of {result.count:,}"
        is_drawn, note = drawn(path, lambda: plot_confusion(result.confusion, test.class_names, path, title=title))
        written = [str(path) for path in (path if is_drawn else None, workdir.evaluation) if path]
        console.print(f"written: {', '.join(written)}", highlight=False, soft_wrap=True)
        if note:
            console.print(f"note: {note}", soft_wrap=True)
    return 0


def _run_of(weights: str) -> Path | None:
    """The directory of the run that has left these weights, if files can be written there."""
    path = Path(weights).expanduser()
    is_of_run = path.is_file() and Workdir(path.parent).has_run
    return path.parent if is_of_run and os.access(path.parent, os.W_OK) else None


def _open(config: TrainConfig, options: SourceOptions) -> Source:
    return open_source(config.data.data, config.run.split, data_dir=config.data.data_dir, options=options)


def _real_labels(config: TrainConfig, test: Source) -> tuple[list[int], list[frozenset[int]]] | None:
    """(the number of each image in ImageNet's validation set, the labels of all); None without `--real-labels`."""
    if config.run.real_labels is None:
        return None
    if not isinstance(test, FolderSource) or test.num_classes != CLASSES or jax.process_count() > 1:
        raise UserError(
            "--real-labels needs ImageNet's validation set with its 1,000 classes as folder:DIR or whole:DIR, and one "
            f"process; {config.data.data} has {test.num_classes:,} classes"
        )
    return validation_numbers(test.paths), read_real_labels(config.run.real_labels)


def _other_classes(config: TrainConfig, loaded: Pretrained, test: Source) -> Iterator[str]:
    """A note if the weights' names of the classes are not those of the data."""
    for number, (theirs, ours) in enumerate(zip(loaded.class_names or (), test.class_names, strict=False)):
        if theirs != ours:
            yield (
                f"class {number} is {theirs!r} in {config.model.weights} and {ours!r} in {config.data.data}; unless "
                "these are two names of the same class, the results are meaningless"
            )
            return


def _preprocessing(config: TrainConfig, given: DataConfig, loaded: Pretrained) -> DataConfig:
    """The data's configuration with the preprocessing of the weights, where the command line does not set it."""
    data, preset = config.data, RECIPES[config.recipe].config.data
    # The default recipe's is for small grey images: it fits its own data and networks for small images alone.
    fits = config.recipe != DEFAULT or data.data == preset.data or loaded.model.small_images
    if not loaded.says_preprocessing and fits:
        return data
    own, size = loaded.preprocessing, given.image_size
    transform = own.transform if size is None else own.transform.resized(size)
    given_decoding = given.source.decoding
    decoding = replace(
        given_decoding,
        exif_orientation=given_decoding.exif_orientation or own.decoding.exif_orientation,
        scale_16_bit=given_decoding.scale_16_bit or own.decoding.scale_16_bit,
    )
    data = replace(data, source=replace(data.source, decoding=decoding))
    stored = {"eval_transform": transform, "mean": own.mean, "std": own.std}
    return replace(data, **{name: x for name, x in stored.items() if getattr(given, name) == getattr(preset, name)})


def _as_json(result: Evaluation, test: Source) -> dict:
    def per_class(values: np.ndarray) -> dict[str, float]:  # NaN becomes null
        return dict(zip(test.class_names, values.tolist(), strict=True))

    return {
        "data": test.spec,
        "split": test.split,
        "origin": test.origin,
        "count": result.count,
        "loss": result.loss,
        "accuracy": result.accuracy,
        "top5": result.top5,
        "macro_f1": result.macro_f1,
        "per_class": per_class(result.per_class),
        "precision": per_class(result.precision),
        "recall": per_class(result.recall),
        "f1": per_class(result.f1),
    }


def _print(result: Evaluation, test: Source, console: Console) -> None:
    class_names = test.class_names
    console.print(f"{result} of {test.split}", highlight=False, soft_wrap=True)
    table = Table("class", box=None, pad_edge=False)
    for heading in ("accuracy", "precision", "F1", "images"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("most often confused with")
    order = np.argsort(result.per_class)
    shown = sorted(order) if len(order) <= WORST else order[:WORST]
    for index in shown:
        row = result.confusion[index].copy()
        row[index] = 0
        mistaken = f"{class_names[row.argmax()]} ({row.max():,})" if row.any() else ""
        figures = [
            "-" if np.isnan(values[index]) else f"{values[index]:.2%}"
            for values in (result.per_class, result.precision, result.f1)
        ]
        table.add_row(class_names[index], *figures, f"{result.confusion[index].sum():,}", mistaken)
    if len(order) > WORST:
        console.print(f"the {WORST} worst of {len(order):,} classes:", highlight=False)
    console.print(Trimmed(table))
