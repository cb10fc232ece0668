"""MLflow and Trackio in memory: the calls that isotrain makes, with the real signatures and refusals.

Checked against mlflow 3.18 and trackio 0.43 (tests/checkpoint/test_trackers.py runs both where they are installed).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Metric:
    key: str
    value: float
    timestamp: int
    step: int

    def __post_init__(self) -> None:
        assert isinstance(self.value, float)
        assert isinstance(self.step, int)


@dataclass(frozen=True)
class Param:
    key: str
    value: str


@dataclass(frozen=True)
class RunTag:
    key: str
    value: str


@dataclass(frozen=True)
class Experiment:
    name: str
    experiment_id: str


@dataclass
class RunInfo:
    run_id: str
    experiment_id: str
    run_name: str
    status: str = "RUNNING"


@dataclass
class RunData:
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class MlflowRun:
    info: RunInfo
    data: RunData = field(default_factory=RunData)
    metrics: list[Metric] = field(default_factory=list)


class MlflowClient:
    """Every client sees the same runs, as those of one server do."""

    experiments: dict[str, Experiment]
    runs: dict[str, MlflowRun]

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        del tracking_uri, registry_uri

    def get_experiment_by_name(self, name: str) -> Experiment | None:
        return self.experiments.get(name)

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> str:
        assert name not in self.experiments, "RESOURCE_ALREADY_EXISTS"
        self.experiments[name] = Experiment(name, str(len(self.experiments) + 1))
        return self.experiments[name].experiment_id

    def create_run(
        self, experiment_id: str, start_time: int | None = None, tags: Any = None, run_name: str | None = None
    ) -> MlflowRun:
        assert experiment_id in {one.experiment_id for one in self.experiments.values()}
        run = MlflowRun(RunInfo(f"{len(self.runs):032x}", experiment_id, run_name or "some-name"))
        self.runs[run.info.run_id] = run
        return run

    def get_run(self, run_id: str) -> MlflowRun:
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        run = self.runs[run_id]
        run.info.status = _status(status) if status else run.info.status

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        self.runs[run_id].info.status = _status(status or "FINISHED")

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        assert len(tags) <= 100
        run = self.runs[run_id]
        run.metrics += metrics
        run.data.metrics |= {one.key: one.value for one in metrics}
        for param in params:
            assert run.data.params.setdefault(param.key, param.value) == param.value, "a param can't change"
        run.data.tags |= {tag.key: tag.value for tag in tags}

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [one for one in self.runs[run_id].metrics if one.key == key]


def _status(name: str) -> str:
    assert name in ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
    return name


def fake_mlflow() -> ModuleType:
    """The module, on a server without runs."""
    entities = ModuleType("mlflow.entities")
    vars(entities).update(Metric=Metric, Param=Param, RunTag=RunTag)
    module = ModuleType("mlflow")
    client = type("MlflowClient", (MlflowClient,), {"experiments": {}, "runs": {}})
    vars(module).update(MlflowClient=client, entities=entities)
    return module


@dataclass
class TrackioRun:
    """A run, and what was logged under its name."""

    name: str
    kept: list[dict[str, Any]]
    _next_step: int

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        at = self._next_step if step is None else step
        self._next_step = max(self._next_step, at + 1)
        self.kept.append({**metrics, "step": at})


class FakeTrackio(ModuleType):
    """The module, on a disk without runs. `logs` has what was logged, by project and name."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.logs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.current: TrackioRun | None = None

    def init(
        self,
        project: str,
        name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
        config: dict[str, Any] | None = None,
        resume: str = "never",
        embed: bool = True,
    ) -> TrackioRun:
        print(f"* Trackio project initialized: {project}")
        assert resume in ("must", "allow", "never")
        assert name is not None
        json.dumps(config)
        kept = self.logs.setdefault((project, name), [])
        assert not kept or resume != "never"
        self.current = TrackioRun(name, kept, max((line["step"] for line in kept), default=-1) + 1)
        return self.current

    def finish(self) -> None:
        if self.current is None:
            raise RuntimeError("Call trackio.init() before trackio.finish().")
        print("* Run finished. Uploading logs to Trackio (please wait...)")
        self.current = None
