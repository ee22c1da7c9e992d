"""Weights & Biases: a run of a project, whose id is that of the job. The server and the mode are WANDB_*'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import wandb

from softprompt.tracking.entries import Entry, PositionFile

_LAST = "softprompt/last_event"


class WandbSink:
    """A server knows a run's last event; offline, a file in `directory` does, and `wandb sync` joins the parts."""

    def __init__(self, job: str, project: str, directory: Path) -> None:
        id = job.removeprefix("tuningJobs/")
        directory.mkdir(parents=True, exist_ok=True)
        self._position = PositionFile(directory / f"softprompt-{id}.position")
        self._run: Any = wandb.init(project=project, id=id, name=id, resume="allow", dir=str(directory))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._last = max(int(self._run.summary.get(_LAST) or 0), self._position.number if self._run.offline else 0)

    @property
    def last_event(self) -> int:
        """See Sink."""
        return self._last

    def write(self, entry: Entry) -> None:
        """See Sink."""
        if entry.parameters:
            self._run.config.update(dict(entry.parameters), allow_val_change=True)
        if entry.values:
            self._run.log({"step": entry.step, **entry.values})
        self._run.summary.update({**entry.texts, _LAST: entry.number})
        self._last = entry.number
        self._position.save(entry.number)

    def close(self) -> None:
        """See Sink."""
        self._run.finish()
