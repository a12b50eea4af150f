"""`python train.py --evaluate`: given weights on a test split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from resnet_flax.data import open_source
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.devices import describe, open_devices
from resnet_flax.training.evaluation import Evaluation
from resnet_flax.training.plots import plot_confusion
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.setup import Setup, facts_of, resized, resolve
from resnet_flax.weights.load import load_pretrained

WORST = 20  # classes listed where there are many


def evaluate_weights(config: TrainConfig, console: Console) -> int:
    """Prints top-1, top-5, loss and the accuracy of each class, and writes confusion.png and evaluation.json.

    Transform, mean and deviation are each what the command line says, where that is not what the recipe does; else
    what the weights say; else the recipe's.

    Raises:
        UserError: without weights, or for weights of other classes than the data's.
    """
    asked, config = config.data, resolve(config)
    if config.model.weights is None:
        raise UserError("--evaluate needs --weights: a file, or torchvision's name of some")
    mesh = open_devices(config.run)
    if jax.process_index() > 0:
        console.quiet = True
    is_file = Path(config.model.weights).expanduser().exists()
    loaded = load_pretrained(None if is_file else config.model.name, config.model.weights)
    test = open_source(config.data.data, "test", data_dir=config.data.data_dir)
    if loaded.model.num_classes != test.num_classes:
        raise UserError(
            f"{config.model.weights} tells {loaded.model.num_classes} classes apart and {config.data.data} has "
            f"{test.num_classes}; evaluate on the data it was trained for, or train a new head"
        )
    if is_file and loaded.class_names not in (None, test.class_names):
        pairs = zip(loaded.class_names or (), test.class_names, strict=True)
        number, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        console.print(
            f"note: class {number} is {theirs!r} in {config.model.weights} and {ours!r} in {config.data.data}: "
            "if that is more than another name, the figures mean nothing",
            highlight=False,
            soft_wrap=True,
        )
    data, preset = config.data, RECIPES[config.recipe].config.data
    if loaded.says_preprocessing:
        kept, size = loaded.preprocessing, asked.image_size
        transform = kept.transform if size is None else resized(kept.transform, size)
        said = {"eval_transform": transform, "mean": kept.mean, "std": kept.std}
        data = replace(data, **{name: x for name, x in said.items() if getattr(asked, name) == getattr(preset, name)})
    small_images = loaded.model.small_images  # the weights' stem, whatever the recipe's
    model = replace(config.model, name=loaded.architecture, freeze=(), small_images=small_images)
    config = replace(config, data=data, model=model)

    setup = Setup(config, mesh, facts_of(test))
    console.print(
        f"{loaded.architecture} from {loaded.source} on {data.data} ({len(test):,} images), {describe(mesh)}\n"
        f"images: {Preprocessing(data.eval_transform, data.mean, data.std)}",
        highlight=False,
        soft_wrap=True,
    )
    result = setup.evaluate(setup.initial_arrays(), setup.evaluation_batches(test))
    if jax.process_index() == 0:
        folder = config.run.workdir or Path()
        folder.mkdir(parents=True, exist_ok=True)
        plot_confusion(result.confusion, test.class_names, folder / "confusion.png")
        (folder / "evaluation.json").write_text(json.dumps(_as_json(result, test.class_names), indent=2) + "\n")
        _print(result, test.class_names, folder, console)
    return 0


def _as_json(result: Evaluation, class_names: tuple[str, ...]) -> dict:
    per_class = {name: None if np.isnan(x) else x for name, x in zip(class_names, result.per_class, strict=True)}
    return {
        "count": result.count,
        "loss": result.loss,
        "accuracy": result.accuracy,
        "top5": result.top5,
        "per_class": per_class,
    }


def _print(result: Evaluation, class_names: tuple[str, ...], folder: Path, console: Console) -> None:
    console.print(
        f"top-1 {result.accuracy:.2%}  top-5 {result.top5:.2%}  loss {result.loss:.4f}  over {result.count:,} images",
        highlight=False,
    )
    table = Table("class", "accuracy", "images", "most often mistaken for", box=None)
    order = np.argsort(result.per_class)
    shown = sorted(order) if len(order) <= WORST else order[:WORST]
    for index in shown:
        row = result.confusion[index].copy()
        row[index] = 0
        mistaken = f"{class_names[row.argmax()]} ({row.max():,})" if row.any() else ""
        total = result.confusion[index].sum()
        accuracy = f"{result.per_class[index]:.2%}" if total else "-"
        table.add_row(class_names[index], accuracy, f"{total:,}", mistaken)
    if len(order) > WORST:
        console.print(f"the {WORST} worst of {len(order):,} classes:", highlight=False)
    console.print(table)
    console.print(f"written: {folder / 'confusion.png'}, {folder / 'evaluation.json'}", highlight=False, soft_wrap=True)
