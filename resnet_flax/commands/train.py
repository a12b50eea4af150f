"""`python -m resnet_flax train [RECIPE] [options]`, the same as `python train.py`."""

from __future__ import annotations

import difflib

from rich.console import Console

from resnet_flax.errors import UserError

USAGE = """Trains a ResNet.

python train.py [RECIPE] [options]       train; digits if no recipe is named
python train.py --list                   the recipes, with their expected results
python train.py --show RECIPE            every setting of one
python train.py --resume [--workdir DIR] go on with an interrupted run
python train.py --compare DIR DIR ...    runs in one plot"""


def main(arguments: list[str]) -> int:
    """Trains, resumes, evaluates, lists or compares; returns the exit status."""
    import tyro

    from resnet_flax.training.config import TrainConfig
    from resnet_flax.training.recipes import RECIPES

    name = "digits"
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)
        raise UserError(f"no recipe named {name!r}; did you mean {', '.join(near)}? (--list shows all)")
    config = tyro.cli(
        TrainConfig,
        default=RECIPES[name].config,
        args=arguments,
        prog=f"python train.py {name}",
        description=USAGE,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from resnet_flax.training.loop import train

    return train(config, Console())
