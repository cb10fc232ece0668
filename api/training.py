"""Training, runs and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..albert_core.config.load import as_set, load_config
from ..albert_core.config.schema import TrainConfig
from ..albert_core.runs.folder import RunFolder, open_run
from ..benchmarks.reports.blocks import Block, Column, Heading, Table, Words
from .shown import Shown

if TYPE_CHECKING:
    from ..albert_core.inference.predict import Predictor
    from ..albert_core.tasks import Prediction


@dataclass(frozen=True)
class Run(Shown):
    """A training run's folder, finished or not.

    Attributes:
        status: completed, stopped, collapsed, failed, or running for one that has no end so far.
        step: Optimizer steps at its end; None without an end.
        metrics: The last evaluation.
        best: The best evaluation and its ``step``.
        label: The model's name. It says if the weights are random, and if the device is emulated.
    """

    path: Path
    config: TrainConfig
    status: str
    step: int | None
    total_steps: int | None
    seconds: float | None
    metrics: dict[str, float]
    best: dict[str, float]
    label: str
    _loaded: dict[str | None, Predictor] = field(default_factory=dict, repr=False, compare=False)

    def evaluations(self) -> list[dict[str, Any]]:
        """One mapping per evaluation, in order: step, epoch, ``train/loss`` and the metrics."""
        from ..albert_core.runs.history import evaluations

        return evaluations(RunFolder(self.path))

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, checkpoint: str | None = None
    ) -> list[Prediction]:
        """The answers for `texts`, in their order. The model is loaded once.

        Args:
            pairs: The second texts, for a run that was trained on pairs; the contexts of questions.
            checkpoint: "last", "best" or a checkpoint's folder, instead of the finished model.

        Raises:
            UserError: A text can't be used, or the run has no finished model.
        """
        if checkpoint not in self._loaded:
            from ..albert_core.inference.predict import load_predictor

            self._loaded[checkpoint] = load_predictor(RunFolder(self.path), None, checkpoint)
        return list(self._loaded[checkpoint].predict(texts, pairs))

    def _blocks(self) -> list[Block]:
        steps = "" if self.step is None else f", step {self.step:,} of {self.total_steps:,}"
        names = [name for name in self.metrics if not name.startswith("_")]

        def cell(values: dict[str, float]) -> Any:
            return lambda name: f"{values[name]:.4f}" if isinstance(values.get(name), float) else ""

        columns = (
            Column[str]("", lambda name: name, numeric=False),
            Column[str]("last", cell(self.metrics)),
            Column[str]("best", cell(self.best)),
        )
        found: list[Block] = [Heading(f"{self.status}{steps}: {self.label}")]
        if names:
            found.append(Table("", columns, names))
        return [*found, Words(f"run: {self.path}")]

    def _page(self) -> str:
        from ..benchmarks.reports.html.loading import load_results
        from ..benchmarks.reports.html.write import page_of

        return page_of(load_results(self.path), self.path.name)


def train(
    config: str | Path | None = None, *, resume: str | Path | Run | None = None, sets: Iterable[str] = (), **keys: Any
) -> Run:
    """Trains as `isotrain train` does, and returns the run.

    Args:
        config: A YAML file, a packaged configuration by name ("quickstart"), or a workload ("my_model.py:TinyGPT").
        resume: The run to continue; its own configuration is used if `config` isn't given.
        sets: ``key=value`` texts, as for ``--set``.
        keys: Keys of the configuration, which win: ``num_epochs=3``, ``backend="tt"``, ``tt={"mode": "exact"}``.

    Raises:
        UserError: Input that can't be used.
        RunError: The run failed.
        KeyboardInterrupt: The run was interrupted; what it saved is kept and can be resumed.
    """
    from .. import UserError
    from ..albert_core.loop.train import train as run_training
    from ..albert_core.output.live import reporter_for_terminal

    earlier = None if resume is None else open_run(resume.path if isinstance(resume, Run) else resume)
    if config is None and earlier is None:
        raise UserError("train got no configuration; name a YAML file, a packaged one (quickstart), or resume=RUN")
    source = config if config is not None or earlier is None else earlier.config
    resolved = load_config(source, [*sets, *_as_sets(keys)], place="train()")
    with reporter_for_terminal() as reporter:
        result = run_training(resolved, resume=earlier, reporter=reporter)
    return load_run(result.run.path)


def load_run(path: str | Path) -> Run:
    """Opens a run's folder, finished or not.

    Raises:
        UserError: It is no run's folder.
    """
    from ..albert_core.runs.history import best_evaluation, evaluations

    folder = open_run(path)
    config = load_config(folder.config).config
    ended = folder.ended()
    last: dict[str, Any] = next(reversed(evaluations(folder)), {})
    metrics = {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")}
    best = {name.removeprefix("eval/"): value for name, value in best_evaluation(folder, config.best).items()}
    return Run(
        path=folder.path,
        config=config,
        status=str(ended.get("status", "running")),
        step=ended.get("step"),
        total_steps=ended.get("total_steps"),
        seconds=ended.get("seconds"),
        metrics=metrics,
        best=best,
        label=str(ended.get("model", config.workload or config.model_name)),
    )


def predict(
    run: str | Path | Run,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    checkpoint: str | None = None,
) -> list[Prediction]:
    """The answers of a run for `texts` (see `Run.predict`). For several calls, keep a `load_run`."""
    opened = run if isinstance(run, Run) else load_run(run)
    return opened.predict(texts, pairs, checkpoint=checkpoint)


def _as_sets(keys: dict[str, Any]) -> list[str]:
    """Keyword arguments as ``key=value`` texts; a dict is a section."""
    found = []
    for key, value in keys.items():
        if isinstance(value, dict):
            found += [as_set(f"{key}.{inner}", item) for inner, item in value.items()]
        else:
            found.append(as_set(key, str(value) if isinstance(value, Path) else value))
    return found
