"""The best weights of a run: when they are replaced, and their files."""

from __future__ import annotations

import logging

import jax
import numpy as np
from jax.experimental import multihost_utils

from parity.conversion.checkpoints import read_checkpoint, write_checkpoint
from parity.conversion.convert import to_torch
from parity.errors import ParityError
from resnet_flax.data import Source
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.training.evaluation import Evaluation, score
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.progress import Progress
from resnet_flax.training.setup import Setup
from resnet_flax.training.state import Arrays, TrainState, model_arrays
from resnet_flax.training.workdir import Workdir
from resnet_flax.weights.arithmetic import arithmetic_of
from resnet_flax.weights.metadata import metadata_of

logger = logging.getLogger("resnet_flax.training")


class BestWeights:
    """Those with the best `--best-by`, of the "model" and of its moving average, "ema".

    Every host decides the same; the first one writes.

    Args:
        setup: of the run.
        source: the training set, which names the classes.
        workdir: where the files are.
        progress: of the run, which has the best figures so far.
    """

    def __init__(self, setup: Setup, source: Source, workdir: Workdir, progress: Progress):
        self.setup, self.source, self.workdir, self.progress = setup, source, workdir, progress
        self.metric = setup.config.schedule.best_by

    def offer(self, arrays: Arrays, weights: str, result: Evaluation, step: int) -> bool:
        """Keeps the arrays if they are the best so far; whether they are."""
        progress = self.progress
        # A checkpoint of an earlier version has the accuracy alone.
        before = progress.scores.get(weights, progress.best.get(weights) if self.metric == "accuracy" else None)
        if before is not None and result.score(self.metric) <= before:
            return False
        self._keep(arrays, weights, result.accuracy, result.score(self.metric), step)
        return True

    def replace_damaged(self, state: TrainState, step: int) -> None:
        """Replaces files that cannot be read by the weights of the checkpoint, if these were evaluated.

        If not, those of the next evaluation are the best.
        """
        evaluated = {
            row["weights"]: row
            for row in read_metrics(self.workdir)
            if row["kind"] == "evaluation" and row["step"] == step and row["accuracy"] is not None
        }
        known = list(self.progress.best)
        damage = [self._damage(weights) if jax.process_index() == 0 else "" for weights in known]
        damaged = multihost_utils.broadcast_one_to_all(np.array([bool(reason) for reason in damage]))
        for weights, reason in ((known[index], damage[index]) for index in np.flatnonzero(damaged)):
            del self.progress.best[weights]
            self.progress.scores.pop(weights, None)
            instead = "those of the next evaluation"
            if weights in evaluated:
                row, instead = evaluated[weights], f"the weights of step {step:,}"
                figure = score(row.get(self.metric.replace("-", "_")), self.metric)
                self._keep(model_arrays(state, ema=weights == "ema"), weights, row["accuracy"], figure, step)
            if reason:
                logger.warning("%s; %s take its place", reason, instead)

    def _damage(self, weights: str) -> str:
        """Why the file cannot be read, or ""; such a file is moved aside."""
        path = self.workdir.weights(weights)
        try:
            read_checkpoint(path)
        except ParityError as error:
            if path.exists():
                path.replace(path.with_name(f"{path.name}.damaged"))
            return str(error)
        return ""

    def _keep(self, arrays: Arrays, weights: str, accuracy: float, figure: float, step: int) -> None:
        self.progress.best[weights], self.progress.scores[weights] = accuracy, figure
        if jax.process_index() == 0:
            self._export(arrays, weights, accuracy, step)

    def _export(self, arrays: Arrays, weights: str, accuracy: float, step: int) -> None:
        """Writes the weights under torchvision's names, with preprocessing and class names."""
        name, data = self.setup.config.model.name, self.setup.config.data
        model = self.setup.network.model(arrays)
        preprocessing = Preprocessing(data.eval_transform, data.mean, data.std, data.source.decoding)
        metadata = {
            **metadata_of(name, preprocessing, self.source.class_names, options=arithmetic_of(model, name)),
            "accuracy": f"{accuracy:.4f}",
            "step": str(step),
        }
        write_checkpoint(self.workdir.weights(weights), to_torch(model), metadata)
