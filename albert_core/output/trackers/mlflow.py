"""MLflow, on a server or in local files."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ...runs.files import write_text
from .base import TrackedRun, Tracker, lacking, numbers

RUN_ID_FILE = "mlflow-run-id"

# What MLflow accepts in one call.
_MOST_PARAMS = 100
_STATUS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker(Tracker):
    """An MLflow run (extra `mlflow`) in the experiment `wandb_project`, wherever MLflow's own settings say
    (``MLFLOW_TRACKING_URI``).

    The run's id is kept in the run's folder, so a resumed run continues the same MLflow run. MLflow can't withdraw the
    figures of steps that a resumed run makes again. It shows the later of two. Texts are left out. Raises ImportError
    if mlflow is not installed, and MLflow's own errors if the run can't be opened.
    """

    def __init__(self, run: TrackedRun) -> None:
        import mlflow
        from mlflow import entities

        # By default a server that is down would hold up the run for four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self._entities = entities
        self._client = mlflow.MlflowClient()
        kept = run.folder / RUN_ID_FILE
        if kept.is_file():
            self._id = kept.read_text(encoding="ascii").strip()
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._start(run)
            write_text(kept, self._id)
        # Of a run that begins again, `lines` has nothing, and MLflow may have all.
        names = self._client.get_run(self._id).data.metrics
        had = {(name, one.step) for name in names for one in self._client.get_metric_history(self._id, name)}
        for line in lacking(run, had, "MLflow"):
            self.log(line["step"], line)

    def _start(self, run: TrackedRun) -> str:
        project = run.config.wandb_project
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
        started = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        written = [self._entities.Param(key, str(value)) for key, value in run.config.model_dump().items()]
        for start in range(0, len(written), _MOST_PARAMS):
            self._client.log_batch(started, params=written[start : start + _MOST_PARAMS])
        return started

    def log(self, step: int, values: dict[str, Any]) -> None:
        now = time.time_ns() // 10**6
        found = [self._entities.Metric(name, value, now, step) for name, value in numbers(values).items()]
        self._client.log_batch(self._id, metrics=found)

    def summary(self, values: dict[str, Any]) -> None:
        # A resumed run sets them again, which parameters don't allow.
        tags = [self._entities.RunTag(name, _text(value)) for name, value in values.items()]
        self._client.log_batch(self._id, tags=tags)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._id, status=_STATUS[status])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
