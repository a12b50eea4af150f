"""MLflow: the server that MLFLOW_TRACKING_URI names, or an SQLite file in the workdir."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from parity.errors import needs_extra
from resnet_flax.trackers.base import TrackedRun

with needs_extra("mlflow", "--track mlflow"):
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient


class Mlflow:
    """A run of the experiment MLFLOW_EXPERIMENT_NAME, or else of the recipe's; a resumed run continues it by its id."""

    def __init__(self, run: TrackedRun):
        here = run.workdir.absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        store = uri or f"sqlite:///{here / 'mlflow.db'}"
        artifacts = None if uri else (here / "mlflow").as_uri()
        self.where = f"mlflow ui --backend-store-uri {store}"
        self._client = MlflowClient(tracking_uri=store)
        if run.id is not None:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.project)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
        self.id = self._client.create_run(number, run_name=run.name).info.run_id
        self._client.log_batch(self.id, params=[Param(name, str(value)) for name, value in run.settings.items()])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")
