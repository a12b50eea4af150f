"""The model card of a repository on the Hugging Face hub: its README.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_flax.weights.load import Pretrained

_SHOWN = 20  # class names, and tensors of a parity report


@dataclass(frozen=True)
class Card:
    """What the card is about.

    Attributes:
        repository: OWNER/NAME.
        pretrained: the weights.
        command: how the repository was made.
        license_name: an identifier of the hub's, such as "apache-2.0".
        notes: what was assumed about the weights, and what timm and transformers do otherwise.
        evaluation: the content of evaluation.json, as `--evaluate` writes it.
        parity: the content of a report, as `python -m parity check --json` writes it.
        in_timm: whether timm and transformers can load it.
    """

    repository: str
    pretrained: Pretrained
    command: str
    license_name: str
    notes: Sequence[str] = ()
    evaluation: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    in_timm: bool = True

    def __str__(self) -> str:
        """Markdown with the hub's YAML before it."""
        parts = [f"---\n{self._front_matter()}\n---\n", f"# {_plain(self.repository)}\n", self._summary(), self._use()]
        if self.evaluation is not None:
            parts.append(self._figures(self.evaluation))
        if self.parity is not None:
            parts.append(self._parity(self.parity))
        if self.notes:
            parts.append("## Notes\n\n" + "\n".join(f"- {_plain(note)}" for note in self.notes) + "\n")
        parts.append(f"## How this repository was made\n\n```bash\n{self.command}\n```\n")
        return "\n".join(parts)

    def _front_matter(self) -> str:
        from huggingface_hub import EvalResult, ModelCardData

        results = None
        if self.evaluation is not None:
            data = {"dataset_type": self.evaluation["data"], "dataset_name": self.evaluation["data"]}
            data |= {"dataset_split": self.evaluation["split"], "task_type": "image-classification"}
            results = [
                EvalResult(metric_type=kind, metric_name=name, metric_value=self.evaluation[key], **data)
                for key, kind, name in (("accuracy", "accuracy", "top-1"), ("top5", "top-5-accuracy", "top-5"))
            ]
        return ModelCardData(
            license=self.license_name,
            library_name="timm" if self.in_timm else "flax",
            pipeline_tag="image-classification",
            tags=["image-classification", "jax", "flax", *(["timm", "transformers"] if self.in_timm else [])],
            model_name=self.repository,
            eval_results=results,
        ).to_yaml()

    def _summary(self) -> str:
        model, loaded = self.pretrained.model, self.pretrained
        names = loaded.class_names or ()
        classes = f"{model.num_classes:,}" if model.num_classes else "none (no head)"
        if names:
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            classes += f": {', '.join(map(_plain, names[:_SHOWN]))}{more}"
        channels = model.in_channels
        return (
            f"A {loaded.architecture}, an image classifier in Flax NNX, under the names that torchvision and timm have "
            f"for its parameters.\n\n| | |\n|---|---|\n| architecture | {loaded.architecture} |\n"
            f"| classes | {classes} |\n| input channels | {channels} |\n| features | {model.num_features:,} |\n"
            f"| preprocessing | {_plain(loaded.preprocessing)} |\n"
        )

    def _use(self) -> str:
        name = self.repository
        blocks = [
            "import resnet_flax\n\n"
            f'model = resnet_flax.create_model("{self.pretrained.architecture}", weights="hf-hub:{name}")'
        ]
        if self.in_timm:
            blocks += [
                f'import timm\n\nmodel = timm.create_model("hf-hub:{name}", pretrained=True).eval()',
                "from transformers import AutoModelForImageClassification\n\n"
                f'model = AutoModelForImageClassification.from_pretrained("{name}")',
            ]
        return "## Use\n\n" + "\n\n".join(f"```python\n{block}\n```" for block in blocks) + "\n"

    def _figures(self, evaluation: Mapping[str, Any]) -> str:
        return (
            "## Figures\n\n"
            f"On {_plain(evaluation['data'])}, {_plain(evaluation['split'])} ({evaluation['count']:,} images), in "
            "evaluation.json:\n\n| top-1 | top-5 | loss |\n|---|---|---|\n"
            f"| {evaluation['accuracy']:.2%} | {evaluation['top5']:.2%} | {evaluation['loss']:.4f} |\n"
        )

    def _parity(self, report: Mapping[str, Any]) -> str:
        settings, rows = report["settings"], report["comparisons"]
        frameworks = " with ".join(settings["frameworks"])
        worst = max(rows, key=lambda row: float(row["error"]["relative"]), default=None)
        lines = [
            "## Parity\n",
            f"`python -m parity check` compared {frameworks} in {settings['precision']}: {len(rows):,} tensors, "
            f"{'all agree' if report['passed'] else '**they do not agree**'} (parity.json).\n",
        ]
        if worst is not None:
            lines.append(
                f"The largest relative error is {float(worst['error']['relative']):.1e}, of {_plain(worst['name'])} "
                f"({worst['check']}).\n"
            )
        return "\n".join(lines)


def _plain(text: object) -> str:
    """Text from outside, which no Markdown reader takes for markup, on one line."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#!~" else c for c in " ".join(str(text).split()))
