"""MLflow: a run of an experiment. The server or folder is MLFLOW_TRACKING_URI's."""

from __future__ import annotations

import time
from typing import Any

from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.tracking import MlflowClient

from shared.values.enums import JobState
from softprompt.tracking.entries import Entry

_JOB, _LAST = "softprompt.job", "softprompt.last_event"
_MAX_CHARS = 5000
"""MLflow's limit for a tag; that for a parameter is 6000."""
_ENDS = {
    JobState.SUCCEEDED: RunStatus.FINISHED,
    JobState.FAILED: RunStatus.FAILED,
    JobState.CANCELLED: RunStatus.KILLED,
}


class MlflowSink:
    """The run whose tag `softprompt.job` is the job's name; it is created if there is none."""

    def __init__(self, job: str, experiment: str) -> None:
        self._client: Any = MlflowClient()
        found = self._client.get_experiment_by_name(experiment)
        id = self._client.create_experiment(experiment) if found is None else found.experiment_id
        runs = self._client.search_runs([id], filter_string=f"tags.`{_JOB}` = '{job}'", max_results=1)
        run = runs[0] if runs else self._client.create_run(id, tags={_JOB: job}, run_name=job.rpartition("/")[2])
        self._run_id: str = run.info.run_id
        self._last = int(run.data.tags.get(_LAST, 0))

    @property
    def last_event(self) -> int:
        """See Sink."""
        return self._last

    def write(self, entry: Entry) -> None:
        """See Sink."""
        milliseconds = int(1000 * (time.time() if entry.time is None else entry.time.timestamp()))
        self._client.log_batch(
            self._run_id,
            metrics=[Metric(name, value, milliseconds, entry.step) for name, value in entry.values.items()],
            params=[Param(name, text[:_MAX_CHARS]) for name, text in entry.parameters.items()],
            tags=[
                *(RunTag(f"softprompt.{name}", text[:_MAX_CHARS]) for name, text in entry.texts.items()),
                RunTag(_LAST, str(entry.number)),
            ],
        )
        self._last = entry.number
        if entry.end is not None:
            self._client.set_terminated(self._run_id, RunStatus.to_string(_ENDS[entry.end]), milliseconds)

    def close(self) -> None:
        """See Sink."""
