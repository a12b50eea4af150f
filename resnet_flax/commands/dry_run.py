"""`python train.py RECIPE --dry-run`: model size, steps, memory, and one compiled step; the data need not be here."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from resnet_flax.compiled.absent_gpu import absent_mesh, card_of, hosts_of
from resnet_flax.compiled.program import CompiledProgram
from resnet_flax.compiled.step_time import StepTime, shares_in_words
from resnet_flax.data import Source, open_source
from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES, get_architecture
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.devices import describe, open_devices
from resnet_flax.training.display import counted, duration
from resnet_flax.training.progressive import described
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.setup import DataFacts, Setup, facts_of, resolve
from resnet_flax.training.sharding import abstract
from resnet_flax.weights.files import read_weights


def image_size(config: TrainConfig, source: Source | None) -> tuple[int, int]:
    """(height, width) of the training images after their transform.

    Args:
        source: the training set; None if it is not here. Sizes that depend on its images are then the recipe's.

    Raises:
        UserError: if the size depends on images that are not here.
    """
    recipe = RECIPES.get(config.recipe)
    stored = recipe.image_size if recipe else None
    if source is not None:
        height, width = source[0]["image"].shape[:2]
        stored = (height, width)
    size = config.data.train_transform.output_size(stored)
    if size is None:
        raise UserError(f"the size of the images depends on {config.data.data}, which is not here; use --image-size")
    return size


def without_weights(config: TrainConfig) -> TrainConfig:
    """The configuration with random weights of the same shapes: of a file, these depend on its stem.

    Raises:
        UserError: if the file has the weights of another network.
    """
    model = config.model
    if model.weights is None or not Path(model.weights).expanduser().exists():
        return replace(config, model=replace(model, weights=None))
    identity = read_weights(Path(model.weights).expanduser(), model.prefix).identity
    theirs = ARCHITECTURES[identity.architecture]
    if not get_architecture(model.name).has_shapes_of(theirs):
        raise UserError(f"{model.weights} has the weights of {theirs.name}, not of {model.name}")
    return replace(config, model=replace(model, weights=None, small_images=identity.small_images))


def main(config: TrainConfig, console: Console) -> int:
    """Prints size, steps, FLOPs and memory, and compiles a step; returns the exit status."""
    weights = config.model.weights
    config = resolve(without_weights(config))
    mesh = open_devices(config.run) if config.run.target is None else absent_mesh(config.run.target)
    try:
        data = config.data
        source = open_source(data.data, "train", data_dir=data.data_dir, may_prepare=False, options=data.source)
    except UserError:
        recipe = RECIPES.get(config.recipe)
        if recipe is None or recipe.config.data.data != config.data.data:
            raise
        source, facts, origin = None, DataFacts(*recipe.data), "published figures: the data set is not here"
    else:
        facts, origin = facts_of(source, config.loss.class_weights), f"opened: {source.origin}"
    setup = Setup(config, mesh, facts)
    shape = (*image_size(config, source), facts.channels)

    state = jax.eval_shape(lambda: setup.state(setup.network.arrays(setup.build_model())))
    state = abstract(state, setup.replicated)
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8, sharding=setup.sharded),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=setup.sharded),
    }
    trained, frozen = (sum(x.size for x in state[name].values()) for name in ("params", "frozen"))
    frozen_note = f", {frozen:,} of them frozen" if frozen else ""

    def say(name: str, value: str) -> None:
        console.print(f"{name:<12}{value}", highlight=False, soft_wrap=True)

    say("recipe", config.recipe)
    say("data", f"{config.data.data}: {facts.images:,} images, {facts.num_classes:,} classes ({origin})")
    for note in source.notes() if source else ():
        say("note", note)
    say("model", f"{config.model.name}: {trained + frozen:,} parameters{frozen_note}")
    if weights is not None:
        say("weights", f"{weights} (their values do not matter here)")
    taught = list(setup.teacher.arrays.values()) if setup.teacher else []
    if taught:
        say("teacher", f"{config.loss.teacher}: {sum(x.size for x in taught):,} parameters and statistics")
    say("images", f"{shape[0]}x{shape[1]}x{shape[2]}, {config.model.dtype} computation")
    if sizes := config.data.progressive_sizes:
        say("", f"{described(sizes, config.schedule.epochs)}; below, the last")
    say(
        "steps",
        f"{setup.total_steps:,} ({counted(config.schedule.epochs, 'epoch')} of {setup.steps_per_epoch:,}, batch "
        f"{config.batch_size:,})",
    )
    say("devices", describe(mesh))
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    say("state", f"{state_bytes / 1e6:,.1f} MB on each device")

    forward = jax.jit(lambda arrays, images: setup.network.model(arrays)(images))
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    arrays = {**state["params"], **state["frozen"], **state["statistics"]}
    if cost := forward.lower(arrays, one).cost_analysis():
        say("cost", f"{cost['flops'] / 1e9:,.2f} GFLOP per image forward, about three times that to train")
    lowered = setup.train_step.lower(state, batch)
    began = time.monotonic()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    if config.run.target is not None and memory is not None:
        card, hosts = card_of(config.run.target), hosts_of(config.run.target)
        room = f", of {card.memory / 1e9:.0f}"
        say("memory", f"{memory.peak_memory_in_bytes / 1e9:,.2f} GB on each device{room}")
        program, images = CompiledProgram(compiled.as_text() or ""), config.batch_size // mesh.size
        bound = int(card.bandwidth / program.traffic * config.batch_size)
        predicted = StepTime(program, card, mesh.size // hosts, hosts)
        low, high = predicted.images_per_second(config.batch_size)
        say("kernels", f"{program.launches:,} per step, {len(program.collectives)} of them collectives")
        say("traffic", f"{program.traffic / images / 1e6:,.1f} MB per image, on each device")
        say("bound", f"{bound:,} images/s, limited by memory bandwidth alone; computed, not measured")
        say("predicted", f"{int(low):,} to {int(high):,} images/s by a time model that no measurement has tested")
        for line in shares_in_words(predicted):
            say("", line)
    elif memory is not None:
        state_bytes += sum(x.nbytes for x in taught)
        say("memory", f"{(state_bytes + memory.temp_size_in_bytes) / 1e9:,.2f} GB on each device")
    say("compiled", f"one step in {duration(time.monotonic() - began)}; nothing was trained")
    return 0
