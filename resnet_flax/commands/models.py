"""`python -m resnet_flax models`."""

from dataclasses import dataclass

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from resnet_flax.models import ARCHITECTURES
from resnet_flax.weights.published import PUBLISHED_WEIGHTS


@dataclass(frozen=True)
class Arguments:
    """List the architectures: parameters, published weights, and their top-1 accuracy on ImageNet in percent."""

    markdown: bool = False
    """Print docs/model-zoo.md instead."""


def overview(box_style: box.Box | None) -> Table:
    tags = sorted({tag for _, tag in PUBLISHED_WEIGHTS})
    table = Table(box=box_style, header_style="bold", pad_edge=box_style is not None)
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
    return table


def markdown() -> str:
    """The page docs/model-zoo.md."""
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        console.print(overview(box.MARKDOWN))
    rows = "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())
    recipes = "\n".join(
        f"| {row.architecture} | {row.name} | {row.preprocessing.transform.resize_size} | {row.top5:.2f} "
        f"| [{row.file_name}]({row.url}) | [how]({row.recipe}) |"
        for row in PUBLISHED_WEIGHTS.values()
    )
    return f"""# Model zoo

Made by `python -m resnet_flax models --markdown > docs/model-zoo.md`.

`resnet_flax.create_model(model, weights=...)` takes the names of the last columns, whose figures are the top-1 accuracy
on ImageNet in percent that torchvision publishes, or `DEFAULT` for the last one of a row.

{rows}

residual18 has 1x1 shortcuts and PyTorch's default initialisation, residual18_3x3 has 3x3 shortcuts, residual18_xavier
is residual18 initialised with Xavier's rule.

Their images are resized to the size below (shorter side, bilinear), cropped to 224 in the centre, and normalised with
ImageNet's mean and standard deviation.

| model | weights | resize | top-5 | file | recipe |
|---|---|---|---|---|---|
{recipes}
"""


def main(arguments: list[str]) -> int:
    config = (tyro.conf.FlagCreatePairsOff,)
    args = tyro.cli(Arguments, prog="python -m resnet_flax models", args=arguments, config=config)
    if args.markdown:
        print(markdown(), end="")
        return 0
    console = Console(highlight=False)
    console.print(overview(None))
    console.print("\nThe last columns name published weights, with their top-1 accuracy on ImageNet in percent.")
    console.print("DEFAULT is the last one of a row. Weights may also be a file, or hf-hub:OWNER/REPOSITORY.")
    return 0
