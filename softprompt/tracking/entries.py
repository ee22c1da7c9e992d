"""Events of a job as entries of an experiment tracker. Knows no tracker."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from shared.values.enums import JobState
from softprompt.types.events import Evaluated, JobEvent, Note, ProgressMade, StateChanged
from softprompt.types.jobs import TuningJob


@dataclass(frozen=True)
class Entry:
    """What one event adds."""

    number: int
    time: datetime | None
    step: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    """Points of curves after `step` steps, all finite: `train/loss`, `held_out/accuracy`, `result/bare/loss`."""
    texts: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Settings of the job, in its first event."""
    end: JobState | None = None
    """The final state, in its last event."""


class Sink(Protocol):
    """An experiment tracker with one run for the job."""

    @property
    def last_event(self) -> int:
        """Number of the last event that was written, also by an earlier process; 0 if none."""
        ...

    def write(self, entry: Entry) -> None:
        """Write an entry, and its number as the last one."""
        ...

    def close(self) -> None:
        """Write everything out. The run stays open in the tracker until the job ends."""
        ...


class PositionFile:
    """The number of the last written event, beside the curves. Read once; replaced atomically with each event."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.number = int(path.read_text())
        except (FileNotFoundError, ValueError):
            self.number = 0

    def save(self, number: int) -> None:
        """Replace the number."""
        self.number = number
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(str(number))
        os.replace(temporary, self._path)


class JobTracker:
    """Writes each event of a job to a sink once. Call it with the events, for example as `on_event` of `tune`."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._step = 0

    def __call__(self, event: JobEvent) -> None:
        """Write an event, unless its number says that it was written already."""
        if event.number <= self.sink.last_event:
            return
        entry = self._entry(event)
        self._step = max(self._step, entry.step)
        self.sink.write(entry)

    def _entry(self, event: JobEvent) -> Entry:
        common: dict[str, Any] = {"number": event.number, "time": event.time}
        match event:
            case ProgressMade(progress=progress) if progress.step and not progress.num_models:
                values = {
                    "train/loss": progress.train_loss,
                    "train/grad_norm": progress.grad_norm,
                    "train/learning_rate": progress.learning_rate,
                    "train/examples_per_second": progress.examples_per_second,
                }
                return Entry(step=progress.step, values=_finite(values), **common)
            case Evaluated(step=step, metrics=metrics):
                values = {f"held_out/{name}": value for name, value in metrics.items()}
                return Entry(step=step, values=_finite(values), **common)
            case Note(text=text):
                return Entry(step=self._step, texts={"note": text}, **common)
            case StateChanged(job=job):
                step = max(self._step, job.progress.step if job.progress is not None else 0)
                parameters = _parameters(job) if event.number == 1 else {}
                texts, values = _outcome(job) if job.state.is_final else ({}, {})
                end = job.state if job.state.is_final else None
                return Entry(step=step, values=values, texts=texts, parameters=parameters, end=end, **common)
            case _:
                return Entry(step=self._step, **common)


def _outcome(job: TuningJob) -> tuple[dict[str, str], dict[str, float]]:
    """Texts and values of an ended job."""
    if job.error is not None:
        return {"error": f"{job.error.code}: {job.error.message}"}, {}
    if (result := job.result) is None:
        return {}, {}
    texts = {"version": result.version, "verdict": result.verdict, "gate": result.gate_decision}
    kinds = {
        "": result.metrics,
        "bare/": result.bare_metrics,
        "instructed/": result.instructed_metrics,
        "few_shot/": result.few_shot_metrics,
        "current/": result.current_metrics,
    }
    values = {f"result/{kind}{name}": value for kind, some in kinds.items() for name, value in some.items()}
    return {name: text for name, text in texts.items() if text}, _finite(values)


def _parameters(job: TuningJob) -> dict[str, str]:
    spec = job.effective_spec
    if spec is None:
        return {}
    found: dict[str, Any] = {"prompt": spec.prompt, "base_model": spec.base_model, "dataset": spec.dataset}
    found |= {item.name: getattr(spec.hyperparameters, item.name) for item in fields(spec.hyperparameters)}
    if spec.hyperparameters.init is not None:
        found["init"] = spec.hyperparameters.init.method
    return {
        name: value.value.lower() if isinstance(value, StrEnum) else str(value)
        for name, value in found.items()
        if value not in (None, {}, "")
    }


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
