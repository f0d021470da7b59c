"""The MLflow tracker: a run's curves, its checkpoints as models, and which of them are best.

    experiment
      run "quickstart"                      curves, parameters, training data, the plot of the losses; a table of its
                                            checkpoints as description
        nested run "quickstart@100"         the checkpoint's row in the table behind `pages.checkpoint_link`; what it
                                            was measured on, and a sample of what it answered
          model "quickstart-step-000100"    its LoggedModel: where the files are, or that they were deleted, and how to
                                            serve them; headline metrics, best for what
    registered model "quickstart"           aliases champion, best-TASK

Nothing is stored twice and nothing is lost, whenever the process dies: times come from the records, so that MLflow
takes the same point only once; whatever is created is looked for first; `mlflow.json` in the run's folder, written in
one piece after every round, says how far the events were taken.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtura.platform.tracking import pages
from mixtura.platform.tracking.aliases import set_aliases
from mixtura.platform.tracking.mlflow_data import Dataset, log_datasets, measured_on
from mixtura.platform.tracking.mlflow_files import log_answers, log_plot
from mixtura.platform.tracking.mlflow_models import EXTERNAL, NOTE, Loader, write_model
from mixtura.platform.tracking.mlflow_registry import version_of
from mixtura.platform.tracking.mlflow_state import CHECKPOINT_URI, Checkpoint, State
from mixtura.platform.tracking.mlflow_store import connect, experiment, refusals_in_words
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
    EvaluationSkipped,
    Note,
    Record,
    RunFinished,
    RunStarted,
    SystemPoint,
    TrainPoint,
    evaluation_results,
)
from mixtura.platform.tracking.selection import (
    AVERAGE,
    CheckpointScores,
    best_for,
    best_on_average,
    best_per_task,
    pareto_front,
    scores,
)
from mixtura.platform.workspace import Run as Folder

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric, Run

MAX_MODEL_METRICS = 30
"""Metrics of a checkpoint's model. MLflow's listing of models loads all of them and slows down with more."""

_KEY, _STEP = "mixtura.key", "mixtura.step"
_STATUS = {"done": "FINISHED", "resumable": "KILLED", "failed": "FAILED"}
_BATCH = 1000
_LOOK_AGAIN_S = 10.0
_IN_ONE_QUERY = 100


class MlflowTracker:
    """Sends one Mixtura run to one MLflow run, across restarts of the process.

    `store_uri` is "sqlite:////workspace/runs/mlflow.db" or a tracking server. `state_path` is `mlflow.json` in the
    run's folder; if it is lost, everything is sent again and MLflow keeps what it has. `tasks` are those whose results
    an average over tasks needs, `data` the examples that it is trained on. `loader` loads checkpoints where MLflow
    serves them; without one they cannot be served. `parent_run_id` nests the run in another one (a trial in its
    search).
    """

    def __init__(
        self,
        store_uri: str,
        experiment_name: str,
        run_name: str,
        state_path: Path,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        tasks: Sequence[str] = (),
        data: Sequence[Dataset] = (),
        loader: Loader | None = None,
        split: str = "validation",
        parent_run_id: str | None = None,
    ) -> None:
        self.store_uri, self.run_name, self.state_path, self.split = store_uri, run_name, state_path, split
        self.tasks, self.loader = tuple(tasks), loader
        self._params = {name: str(value) for name, value in (params or {}).items()}
        self._tags = dict(tags or {}) | ({"mlflow.parentRunId": parent_run_id} if parent_run_id else {})
        self._data = tuple(data)
        self._client = connect(store_uri)
        self._state = self._known_state(experiment(store_uri, self._client, experiment_name))
        self._aliases_read_s = -_LOOK_AGAIN_S

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment."""
        return self._state.experiment_id

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty before the first record."""
        return self._state.run_id

    def positions(self) -> Mapping[str, int]:
        """How far the events were taken."""
        return self._state.positions

    def scores(self) -> list[CheckpointScores]:
        """The checkpoints evaluated so far, best average first."""
        return scores(self._state.results, self.split, self.tasks)

    def log(self, records: Sequence[Record], positions: Mapping[str, int]) -> None:
        """Send records; when it returns, MLflow has them and `mlflow.json` says so.

        Raises ResourceError where the store does not take them.
        """
        if records:
            with refusals_in_words(self.store_uri):
                self._log(records)
            self._state.positions = dict(positions)
            self._save()

    def _log(self, records: Sequence[Record]) -> None:
        self._ensure_run(records[0])
        self._send_curves([record for record in records if isinstance(record, (TrainPoint, SystemPoint))])
        for record in records:
            if isinstance(record, TrainPoint):
                self._state.loss = record.metrics.get("loss", self._state.loss)
            elif isinstance(record, CheckpointCommitted):
                self._ensure_checkpoint(record)
        results = evaluation_results(records)
        if results:
            self._send_results(results)
        for record in records:
            if isinstance(record, (RunStarted, RunFinished, Note)):
                self._send_news(record)
            elif isinstance(record, EvaluationSkipped) and str(record.step) in self._state.checkpoints:
                self._tag(self._state.checkpoints[str(record.step)], "evaluation", f"skipped: {record.reason}")
        if results or time.monotonic() - self._aliases_read_s > _LOOK_AGAIN_S:
            self._note_aliases()
        self._mark_deleted()
        # Files go last: where their place cannot be written to, all numbers are there nevertheless.
        self._send_files(records, results)

    def _known_state(self, experiment_id: str) -> State:
        """What the last process left, if the store still has that run; otherwise everything is sent from the start."""
        state = State.load(self.state_path)
        if state.store == self.store_uri and state.run_id and self._is_active(state.run_id):
            return state
        return State(store=self.store_uri, experiment_id=experiment_id)

    def _is_active(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_run(run_id).info.lifecycle_stage) == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _ensure_run(self, first: Record) -> None:
        """Find or create the MLflow run. Its key is the time of the first record, which no other run shares."""
        if not self._state.run_id:
            key = f"{self.run_name} {first.time_s:.6f}"
            run = self._find_run(f"tags.`{_KEY}` = '{key}'")
            if run is None:
                tags = {_KEY: key, "mlflow.source.name": "mixtura", **self._tags}
                start = int(first.time_s * 1000)
                run = self._client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=self.run_name)
            self._state.run_id = str(run.info.run_id)
            self._save()
        if self._params:
            self._send_params(self._client.get_run(self.run_id))
            self._params = {}
        if self._data:
            log_datasets(self._client, self.run_id, self._data, "training")
            self._data = ()

    def _send_params(self, run: Run) -> None:
        from mlflow.entities import Param

        # A parameter of an MLflow run cannot change; after a change of a free setting the first value stays.
        missing = [Param(name, value) for name, value in self._params.items() if name not in run.data.params]
        for begin in range(0, len(missing), 100):
            self._client.log_batch(self.run_id, params=missing[begin : begin + 100])

    def _find_run(self, condition: str) -> Run | None:
        found = self._client.search_runs([self.experiment_id], condition, max_results=1)
        return found[0] if found else None

    def _send_curves(self, points: Iterable[TrainPoint | SystemPoint]) -> None:
        from mlflow.entities import Metric

        metrics, steps = [], dict(self._state.steps)
        for point in points:
            prefix, step = "", int(point.time_s)
            if isinstance(point, TrainPoint):
                step = point.step
            else:  # on a page of MLflow's for what begins so; its steps are seconds
                prefix = "system/" if point.node == 0 else f"system/node_{point.node}/"
            for name, value in point.metrics.items():
                if step > steps.get(f"{prefix}{name}", -1):
                    steps[f"{prefix}{name}"] = step
                    metrics.append(Metric(_metric_key(f"{prefix}{name}"), value, int(point.time_s * 1000), step))
        self._send(self.run_id, metrics)
        self._state.steps = steps

    def _send(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for begin in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[begin : begin + _BATCH])

    def _ensure_checkpoint(self, record: CheckpointCommitted) -> None:
        """Find or create the nested run and the model of a checkpoint."""
        if str(record.step) in self._state.checkpoints:
            return
        run = self._checkpoint_run(record)
        model = self._checkpoint_model(record, run)
        checkpoint = Checkpoint(str(run.info.run_id), str(model.model_id), record.path)
        if self._state.loss is not None:
            self._send(checkpoint.run_id, [checkpoint.metric("loss", self._state.loss, record.step, record.time_s)])
        self._state.checkpoints[str(record.step)] = checkpoint
        self._save()

    def _checkpoint_run(self, record: CheckpointCommitted) -> Run:
        found = self._find_run(f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`{_STEP}` = '{record.step}'")
        if found is not None:
            return found
        time_ms = int(record.time_s * 1000)
        tags = {
            "mlflow.parentRunId": self.run_id,
            "mlflow.source.name": "mixtura",
            pages.CHECKPOINT_OF: self.run_name,
            _STEP: str(record.step),
            CHECKPOINT_URI: record.path,
        }
        name = f"{self.run_name}@{record.step}"
        run = self._client.create_run(self.experiment_id, start_time=time_ms, tags=tags, run_name=name)
        self._client.set_terminated(run.info.run_id, end_time=time_ms)
        return run

    def _checkpoint_model(self, record: CheckpointCommitted, run: Run) -> LoggedModel:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        found = self._client.search_logged_models([self.experiment_id], f"source_run_id = '{run.info.run_id}'")
        model = found[0] if found else None
        if model is None:
            model = self._client.create_logged_model(
                self.experiment_id,
                name=_model_name(self.run_name, record.step),
                source_run_id=run.info.run_id,
                tags={CHECKPOINT_URI: record.path, EXTERNAL: "true"},
                params={"step": str(record.step)},
                model_type="checkpoint",
            )
        if model.status != LoggedModelStatus.READY:
            model = self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        for run_id in (self.run_id, run.info.run_id):
            outputs = self._client.get_run(run_id).outputs
            if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
                self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record.step)])
        return model

    def _send_results(self, results: Sequence[EvaluationResult]) -> None:
        """Send evaluation results to their checkpoints and as curves, then say anew which checkpoint is best."""
        from mlflow.entities import Metric

        # After a failure half-way the same results come again.
        known = set(self._state.results)
        self._state.results += [result for result in results if result not in known]
        headlines, curve = self._headlines(), []
        for step in sorted({result.step for result in results}):
            mine = [result for result in results if result.step == step]
            self._ensure_checkpoint(CheckpointCommitted(step, "", time_s=mine[0].time_s))
            checkpoint, metrics = self._state.checkpoints[str(step)], []
            for result in mine:
                name = self._name(result)
                metrics.append(
                    checkpoint.metric(
                        name,
                        result.value,
                        step,
                        result.time_s,
                        of_model=name in headlines,
                        measured_on=measured_on(result),
                    )
                )
                of_run = _metric_key(f"{result.split}/{result.task}/{result.metric}")
                curve.append(Metric(of_run, result.value, int(result.time_s * 1000), step))
            log_datasets(self._client, checkpoint.run_id, filter(None, map(measured_on, mine)), "eval")
            self._send(checkpoint.run_id, metrics)
            self._describe_checkpoint(step, mine[-1].time_s)
        self._send(self.run_id, curve)
        self._rank(headlines)

    def _headlines(self) -> list[str]:
        """Names of the headline metrics, the picking split's first; as many as a model's page can take."""
        splits = {result.split for result in self._state.results}
        names = []
        for split in sorted(splits, key=lambda split: (split != self.split, split)):
            best = best_per_task(scores(self._state.results, split))
            names += [self._name(one.results[task]) for task, one in best.items()]
        return names[: MAX_MODEL_METRICS - 2]  # the average and the loss are two more

    def _name(self, result: EvaluationResult) -> str:
        return _metric_key(pages.metric_name(result, self.split))

    def _rank(self, headlines: Sequence[str]) -> None:
        from mlflow.entities import Metric

        found, curve = self.scores(), []
        for one in found:
            if one.average is None or self._state.averages.get(str(one.step)) == one.average:
                continue
            checkpoint = self._state.checkpoints[str(one.step)]
            time_s = max(result.time_s for result in one.results.values())
            self._send(checkpoint.run_id, [checkpoint.metric(AVERAGE, one.average, one.step, time_s)])
            curve.append(Metric(f"{self.split}/{AVERAGE}", one.average, int(time_s * 1000), one.step))
        self._send(self.run_id, curve)
        self._state.averages = {str(one.step): one.average for one in found if one.average is not None}
        self._mark(found)
        self._promote(found)
        self._describe_run(found)
        self._show(headlines)

    def _mark(self, found: Sequence[CheckpointScores]) -> None:
        """Tag rows and models of checkpoints with what they are best for; a better one takes the tags over."""
        best, front = best_for(found), {one.step for one in pareto_front(found)}
        for step, names in best.items():
            checkpoint = self._state.checkpoints[str(step)]
            wanted = {pages.BEST: ", ".join(names), pages.PARETO: "yes" if step in front else ""}
            for name, value in wanted.items():
                self._tag(checkpoint, name, value)

    def _mark_deleted(self) -> None:
        """Tag checkpoints whose files are gone, whoever deleted them; they keep their row and their numbers."""
        for checkpoint in self._state.checkpoints.values():
            path = Path(checkpoint.path)
            if checkpoint.path and path.parent.is_dir():  # otherwise this machine cannot tell
                self._tag(checkpoint, pages.FILES, "" if path.is_dir() else "deleted")

    def _tag(self, checkpoint: Checkpoint, name: str, value: str) -> None:
        """A tag of a checkpoint's row and of its model; nothing is sent twice."""
        if checkpoint.tags.get(name, "") != value:
            self._client.set_tag(checkpoint.run_id, name, value)
            self._client.set_logged_model_tags(checkpoint.model_id, {name: value})
            checkpoint.tags[name] = value

    def _promote(self, found: Sequence[CheckpointScores]) -> None:
        """Point the registry's aliases at the best checkpoints."""
        champion = best_on_average(found)
        best = {f"best-{task}": one.step for task, one in best_per_task(found).items()}
        for what, step in (best | ({"champion": champion.step} if champion else {})).items():
            alias = re.sub(r"[^\w-]", "_", what)
            if self._state.aliases.get(alias) != str(step):
                self._client.set_registered_model_alias(self.run_name, alias, self._version(step))
                self._state.aliases[alias] = str(step)

    def _note_aliases(self) -> None:
        """Write down beside the run which of its checkpoints have a name: people give names on MLflow's pages, under
        any registered model, and retention must not need a registry to keep what they named."""
        self._aliases_read_s = time.monotonic()
        steps = {checkpoint.run_id: int(step) for step, checkpoint in self._state.checkpoints.items()}
        versions: dict[str, dict[str, int]] = {}
        for begin in range(0, len(steps), _IN_ONE_QUERY):
            ids = ", ".join(f"'{run_id}'" for run_id in list(steps)[begin : begin + _IN_ONE_QUERY])
            for version in self._client.search_model_versions(f"run_id IN ({ids})"):
                versions.setdefault(version.name, {})[str(version.version)] = steps[version.run_id]
        for model, known in versions.items():
            aliases = self._client.get_registered_model(model).aliases
            named = {alias: known[str(version)] for alias, version in aliases.items() if str(version) in known}
            set_aliases(self.state_path.parent, model, named)

    def _version(self, step: int) -> str:
        """The checkpoint's version in the registry, registered if need be."""
        checkpoint = self._state.checkpoints[str(step)]
        if checkpoint.version is None:
            checkpoint.version = version_of(self._client, self.run_name, f"{self.run_name}@{step}", step, checkpoint)
        return checkpoint.version

    def _describe_checkpoint(self, step: int, end_s: float) -> None:
        checkpoint = self._state.checkpoints[str(step)]
        results = [result for result in self._state.results if result.step == step]
        text = pages.checkpoint_description(f"{self.run_name}@{step}", checkpoint.model_id, results)
        self._client.set_tag(checkpoint.run_id, NOTE, text)
        self._client.set_terminated(checkpoint.run_id, end_time=int(end_s * 1000))

    def _describe_run(self, found: Sequence[CheckpointScores]) -> None:
        self._client.set_tag(self.run_id, NOTE, pages.run_description(self.run_name, found))
        champion = best_on_average(found)
        best = {task: (one, one.value(task)) for task, one in best_per_task(found).items()}
        for what, (one, value) in (best | ({AVERAGE: (champion, champion.average)} if champion else {})).items():
            text = f"{self.run_name}@{one.step} ({pages.shown(value)})"
            self._client.set_tag(self.run_id, _metric_key(f"best {what}"), text)

    def _show(self, headlines: Sequence[str]) -> None:
        """Keep the named view of the checkpoints up to date with the metrics there are."""
        picked_by = {self._name(result) for result in self._state.results if result.split == self.split}
        first = [AVERAGE] * bool(self._state.averages) + [name for name in headlines if name in picked_by]
        more = [name for name in headlines if name not in picked_by] + ["loss"]
        view = pages.checkpoint_view(self.run_name, first or more, more, self._state.results[-1].time_s)
        name = pages.VIEW_TAG + self.run_name
        known = self._client.get_experiment(self.experiment_id).tags.get(name)
        if len(view) <= pages.MAX_VIEW_CHARACTERS and (known is None or _layout(known) != _layout(view)):
            self._client.set_experiment_tag(self.experiment_id, name, view)

    def _send_news(self, record: RunStarted | RunFinished | Note) -> None:
        if isinstance(record, RunStarted):
            self._client.update_run(self.run_id, status="RUNNING")
            # An attempt may run other code on other machines than the one before.
            known = self._client.get_run(self.run_id).data.tags
            for name, value in {**self._tags, "attempts": str(record.attempt)}.items():
                if known.get(name) != value:
                    self._client.set_tag(self.run_id, name, value)
        elif isinstance(record, RunFinished):
            self._client.set_terminated(self.run_id, _STATUS[record.status], end_time=int(record.time_s * 1000))
            self._client.set_tag(self.run_id, "status", f"{record.status}. {record.message}".strip())
        else:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.time_s))
            self._client.set_tag(self.run_id, f"note {when} UTC", record.text)

    def _send_files(self, records: Sequence[Record], results: Sequence[EvaluationResult]) -> None:
        """How each checkpoint is loaded and served, a sample of what it answered, and the plot of a run that ended."""
        for checkpoint in self._state.checkpoints.values():
            if self.loader is not None and not checkpoint.served:
                checkpoint.served = write_model(self._client, self.loader, checkpoint)
        run = Folder(self.state_path.parent)
        for step in sorted({result.step for result in results}):
            checkpoint = self._state.checkpoints[str(step)]
            measured = dict.fromkeys(f"{result.task}.{result.split}" for result in results if result.step == step)
            folder = run.predictions / Path(checkpoint.path).name
            log_answers(self._client, checkpoint.run_id, [folder / f"{name}.jsonl" for name in measured])
        if any(isinstance(record, RunFinished) for record in records):
            log_plot(self._client, self.run_id, run.losses_plot)

    def _save(self) -> None:
        self._state.save(self.state_path)


def _model_name(run_name: str, step: int) -> str:
    """MLflow refuses some characters in names of models.

    >>> _model_name("t5.small", 100)
    't5-small-step-000100'
    """
    return re.sub(r"""[/:.%"'@]""", "-", run_name) + f"-step-{step:06d}"


def _metric_key(name: str) -> str:
    """A name with the characters that MLflow takes in keys.

    >>> _metric_key("loss/wmt (en)")
    'loss/wmt _en_'
    """
    return re.sub(r"[^\w\-. :/]", "_", name)


def _layout(view: str) -> str:
    state: str = json.loads(view)["state"]
    return state
