"""`python -m resnet_flax models`."""

from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from resnet_flax.models import ARCHITECTURES
from resnet_flax.weight_table import PUBLISHED_WEIGHTS


@dataclass(frozen=True)
class Arguments:
    """List the architectures: parameters, published top-1 accuracy on ImageNet, and the names of the weights."""


def main(arguments: list[str]) -> int:
    tyro.cli(Arguments, prog="python -m resnet_flax models", args=arguments)
    tags = sorted({tag for _, tag in PUBLISHED_WEIGHTS})
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model")
    table.add_column("parameters", justify="right")
    table.add_column("input")
    for header in ("classes", *tags):
        table.add_column(header, justify="right")
    for name, row in ARCHITECTURES.items():
        published = [PUBLISHED_WEIGHTS.get((name, tag)) for tag in tags]
        accuracies = [f"{weights.top1:.2f}" if weights else "-" for weights in published]
        channels = "grey" if row.in_channels == 1 else "RGB"
        table.add_row(name, f"{row.parameters:,}", channels, str(row.num_classes), *accuracies)
    console = Console(highlight=False)
    console.print(table)
    console.print("\nThe last columns name published weights, with their top-1 accuracy on ImageNet in percent.")
    console.print("DEFAULT is the last one of a row. Weights may also be a file, or hf-hub:OWNER/REPOSITORY.")
    return 0
