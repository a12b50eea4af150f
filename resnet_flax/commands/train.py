"""`python -m resnet_flax train [RECIPE] [options]`, the same as `python train.py`."""

from __future__ import annotations

import importlib
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from parity import options
from parity.errors import UsageError, importing, needs_extra
from resnet_flax.errors import UserError
from resnet_flax.text import PlainConsole
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.display import program
from resnet_flax.training.recipes import DEFAULT, RECIPES, Recipe, recipe_named
from resnet_flax.training.workdir import Workdir, latest_run

if TYPE_CHECKING:
    from resnet_flax.training.hosts import Hosts

DESCRIPTION = """Trains a ResNet, resumes a run, or evaluates weights:
  [RECIPE] [options]             train; the recipe is digits by default
  --list                         the recipes, with their expected results
  --show RECIPE                  all settings of a recipe
  RECIPE --dry-run               its size, cost and memory, without training
  --resume [--workdir DIR]       resume an interrupted run
  --evaluate --weights FILE      the accuracy of weights, by class too
  --compare DIR DIR ...          runs in one plot and one table"""


def main(arguments: list[str]) -> int:
    """Trains or resumes, or runs the command that an option names; returns the exit status."""
    console = PlainConsole()
    match arguments:
        case ["--list", *rest]:
            if rest:
                raise UserError(f"--list takes no arguments; got {' '.join(rest)}; --show RECIPE shows one recipe")
            list_recipes(console)
            return 0
        case ["--show", *names]:
            for name in names or RECIPES:
                show(name, recipe_named(name), console)
            return 0
        case ["--compare", *workdirs]:
            from resnet_flax.commands import compare

            return compare.main(workdirs, console)

    config = _parse_among_others(arguments) if "--distributed" in arguments else parse(arguments)
    if config.run.distributed:
        from resnet_flax.training.devices import prepare_process
        from resnet_flax.training.hosts import joined

        prepare_process(config.run)
        with joined(distributed=True) as hosts:
            return _run(config, console, hosts)
    return _run(config, console, None)


def _parse_among_others(arguments: list[str]) -> TrainConfig:
    """As `parse`, on one of several hosts: a mistake ends them all."""
    try:
        return parse(arguments)
    except UsageError as error:
        mistake = error
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        mistake = UserError("the command line is not understood")  # what is wrong has been printed
    from resnet_flax.training.hosts import end_others

    return end_others(mistake)


def _run(config: TrainConfig, console: Console, hosts: Hosts | None) -> int:
    if not config.run.dry_run:
        _require_libraries("--evaluate" if config.run.evaluate else "training")
    if config.run.evaluate:
        with importing():
            from resnet_flax.commands import evaluate

        return evaluate.main(config, console, hosts)
    if config.run.dry_run:
        with importing():
            from resnet_flax.commands import dry_run

        return dry_run.main(config, console)
    with importing():
        from resnet_flax.training.loop import train

    return train(config, console, hosts)


def _require_libraries(what: str) -> None:
    """All of them at the start, rather than each when a run first uses it."""
    with needs_extra("train", what), importing():
        for module in ("grain", "matplotlib", "orbax.checkpoint", "tensorboard"):
            importlib.import_module(module)


def parse(arguments: list[str]) -> TrainConfig:
    """The configuration of a command line: that of a recipe, or with --resume of the run, with the given options."""
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        default = recipe_named(name).config
        if arguments and arguments[0] in RECIPES:
            raise UserError(f"train one recipe at a time; got {name} and {arguments[0]}")
    elif "--resume" in arguments:
        workdir = _value("--workdir", arguments)
        run = Workdir(workdir) if workdir else latest_run()
        saved = run.load_config()
        once = dict.fromkeys(("evaluate", "dry_run", "profile", "distributed"), False)
        default = replace(saved, run=replace(saved.run, workdir=run.path, **once))  # it may have been moved
    else:
        default = RECIPES[DEFAULT].config
    return options.parse(
        TrainConfig,
        arguments,
        default=default,
        prog=f"python {program()} {default.recipe}",
        description=f"{DESCRIPTION}\n\nThe defaults are the recipe {default.recipe}'s; None unsets one.",
        config=(),
    )


def _value(option: str, arguments: list[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def list_recipes(console: Console) -> None:
    """One line per recipe: name, model, expected result."""
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        console.print(f"{name:<{width}}  {recipe.config.model.name}: {recipe.result}", highlight=False, soft_wrap=True)


def show(name: str, recipe: Recipe, console: Console) -> None:
    """All settings of a recipe, as the options that set them."""
    console.print(
        f"{name}\n  source   {recipe.source}\n  result   {recipe.result}\n  scaling  {recipe.scaling}",
        highlight=False,
        soft_wrap=True,
    )
    for option in options.options_of(recipe.config):
        if option.path[0] not in ("recipe", "run"):
            console.print(f"  {_given(option)}", highlight=False, soft_wrap=True)


def _given(option: options.Option) -> str:
    """The option with its value, as on a command line."""
    if isinstance(option.value, bool):
        return option.name if option.value else f"--no-{option.name[2:]}"
    return " ".join([option.name, *_words(option.value)])


def _words(value: Any) -> list[str]:
    return [word for item in value for word in _words(item)] if isinstance(value, tuple) else [shlex.quote(str(value))]
