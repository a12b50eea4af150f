"""What a run states when it begins: what is trained on what, and what differs from a recipe or an earlier process."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_flax.data import Source
from resnet_flax.errors import UserError
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.devices import describe
from resnet_flax.training.display import counted
from resnet_flax.training.progressive import described
from resnet_flax.training.recipes import scaling_note
from resnet_flax.training.setup import Setup
from resnet_flax.training.workdir import Workdir

SPREAD = ("cosine", "poly")  # schedules that depend on the number of epochs


def headline(setup: Setup, source: Source, test: Source, start: int) -> str:
    """The recipe, the model, the data and the devices, with what is remarkable about the data.

    Args:
        source, test: the training and the test set.
        start: the steps already taken.
    """
    facts = setup.facts
    resumed = f", resumed after step {start:,}" if start else ""
    steps = f"{counted(setup.config.schedule.epochs, 'epoch')} of {counted(setup.steps_per_epoch, 'step')}"
    data = f"{facts.images:,} training and {len(test):,} {test.split} images, {facts.num_classes} classes"
    notes = "".join(f"\nnote: {note}" for note in dict.fromkeys((*source.notes(), *test.notes())))
    return (
        f"{setup.config.recipe}: {setup.config.model.name} on {setup.config.data.data} ({data}), {steps}, "
        f"batch {setup.config.batch_size:,}, {describe(setup.mesh)}{resumed}\n"
        f"train: {source.origin}\n{test.split}, which chooses the best weights: {test.origin}{notes}"
    )


def notes(setup: Setup, workdir: Workdir, saved: TrainConfig, start: int) -> Iterator[str]:
    """One sentence each.

    Args:
        saved: the configuration that the run had until now.
        start: the steps already taken.

    Raises:
        UserError: if the run has already trained for more epochs.
    """
    config = setup.config
    if config.run.resume and not start:
        yield "no checkpoint yet: starting from the first step"
    if note := scaling_note(config):
        yield note
    if sizes := config.data.progressive_sizes:
        yield f"sizes: {described(sizes, config.schedule.epochs)}"
    yield from _about_epochs(setup, workdir, saved, start)
    before, now = workdir.devices, setup.mesh.size
    if config.run.resume and before not in (None, now):
        yield (
            f"devices: {before} at the start of the run, {now} now; the batch is the same, and results differ a little "
            "(docs/training.md, What is deterministic)"
        )


def _about_epochs(setup: Setup, workdir: Workdir, saved: TrainConfig, start: int) -> Iterator[str]:
    """What another number of epochs means for the learning rate."""
    schedule, before = setup.config.schedule, saved.schedule.epochs
    if schedule.epochs == before:
        return
    if setup.total_steps < start:
        done = f"{start / setup.steps_per_epoch:.4g}"
        raise UserError(f"--epochs {schedule.epochs} is less than the {done} that {workdir} has; pass more")
    rate = (
        f"from step {start + 1:,} on, the {schedule.schedule} schedule is that of a run of {schedule.epochs}"
        if schedule.schedule in SPREAD
        else f"the {schedule.schedule} schedule continues as it was"
    )
    yield f"epochs: {before} before, {schedule.epochs} now; {rate}"
