"""Tuning jobs and their events in OpenAI's form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shared.text.counted import counted
from shared.values.enums import JobState
from softprompt.gateway.errors import ApiError, bad_value
from softprompt.gateway.files import file_id
from softprompt.gateway.results import version_model
from softprompt.gateway.tuning_specs import suffix_of
from softprompt.report.words import number
from softprompt.types.events import CheckpointStored, Evaluated, JobEvent, Note, ProgressMade, StateChanged
from softprompt.types.jobs import TuningJob

_ID = re.compile(r"ftjob-([0-9a-z]{1,64})")
_STATUSES = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSED: "paused",
    JobState.CANCELLING: "cancelled",  # nothing can stop that any more
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


def job_name(id: str) -> str:
    """`ftjob-<id>` as `tuningJobs/<id>`. Raises ApiError for an id that is not a job's."""
    match = _ID.fullmatch(id)
    if match is None:
        raise ApiError(404, f"No such fine-tuning job: {id[:100]!r}", param="fine_tuning_job_id", code="not_found")
    return f"tuningJobs/{match[1]}"


def job_object(job: TuningJob, recipe_rate: float | None) -> dict[str, Any]:
    """A job. Its hyperparameters are those in use; `learning_rate_multiplier` is relative to `recipe_rate`."""
    spec, progress, error = job.spec, job.progress, job.error
    status = _STATUSES[job.state]
    if job.state is JobState.RUNNING and progress is not None and progress.num_examples:
        status = "validating_files"  # the worker prepares the examples
    hyperparameters = _hyperparameters(job, recipe_rate)
    effective = job.effective_spec.hyperparameters if job.effective_spec else None
    is_running = job.state is JobState.RUNNING and progress is not None
    return {
        "id": _job_id(job),
        "object": "fine_tuning.job",
        "created_at": _seconds(job.create_time) or 0,
        "finished_at": _seconds(job.end_time),
        "estimated_finish": _seconds(progress.estimated_end_time) if is_running and progress else None,
        "model": job.effective_spec.base_model if job.effective_spec else "",
        "fine_tuned_model": _model(job),
        "organization_id": "",
        "status": status,
        "training_file": file_id(str(spec.dataset)) if spec else "",
        "validation_file": file_id(str(spec.validation_dataset)) if spec and spec.validation_dataset else None,
        "result_files": [],
        "trained_tokens": _trained_tokens(job),
        "seed": (effective.seed or 0) if effective else 0,
        "user_provided_suffix": suffix_of(spec.prompt) if spec else None,
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "metadata": dict(spec.annotations) if spec else {},
        "integrations": [],
        "error": {"code": error.code, "message": error.message, "param": error.field or None} if error else None,
    }


def checkpoints(job: TuningJob) -> list[dict[str, Any]]:
    """The published version, if there is one: other states of a job can't be used as a model."""
    model, result = _model(job), job.result
    if model is None or result is None:
        return []
    step = result.best_step
    return [
        {
            "id": f"ftckpt-{_job_id(job).removeprefix('ftjob-')}-{step}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": _seconds(job.end_time) or 0,
            "fine_tuned_model_checkpoint": model,
            "fine_tuning_job_id": _job_id(job),
            "step_number": step,
            "metrics": {"step": step, **_valid(result.metrics, "full_valid")},
        }
    ]


def event_number(id: str, job: TuningJob) -> int:
    """The number in an event's id. Raises ApiError for the id of something else."""
    prefix, _, text = id.rpartition("-")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0
    if prefix != _event_prefix(job) or not 1 <= number <= job.last_event:
        raise bad_value("after", "is not the id of an event of this job")
    return number


def event_object(job: TuningJob, event: JobEvent) -> dict[str, Any]:
    """An event, with its numbers in `data` if it has some."""
    level, text, data = _content(event)
    return {
        "id": f"{_event_prefix(job)}-{event.number}",
        "object": "fine_tuning.job.event",
        "created_at": _seconds(event.time) or 0,
        "level": level,
        "message": text,
        "type": "metrics" if data else "message",
        "data": data,
    }


def _content(event: JobEvent) -> tuple[str, str, dict[str, Any]]:
    match event:
        case ProgressMade(progress=progress):
            data = {
                "step": progress.step,
                "total_steps": progress.num_steps,
                "train_loss": _finite(progress.train_loss),
                "learning_rate": _finite(progress.learning_rate),
            }
            if not progress.step:
                return "info", f"{progress.num_prepared}/{counted(progress.num_examples, 'example')} prepared", data
            if progress.num_models:
                return "info", f"Final evaluation: {progress.num_measured}/{progress.num_models} models measured", data
            return (
                "info",
                f"Step {progress.step}/{progress.num_steps}: training loss={number(progress.train_loss)}",
                data,
            )
        case Evaluated(step=step, metrics=metrics, is_best=is_best):
            shown = ", ".join(f"{name}={number(value)}" for name, value in sorted(metrics.items()))
            data = {"step": step, **_valid(metrics, "valid"), "is_best": is_best}
            return "info", f"Step {step}: held-out {shown}", data
        case CheckpointStored(step=step):
            return "info", f"Step {step}: state stored", {}
        case Note(text=text):
            return "info", text, {}
        case StateChanged(job=job):
            if job.error is not None and job.state is JobState.FAILED:
                return "error", f"The job failed: {job.error.message}", {}
            model = _model(job)
            named = f"; its model is {model}" if model else ""
            return "info", f"The job's status is {_STATUSES[job.state]}{named}", {}
    return "info", "", {}


def _valid(metrics: Mapping[str, float], prefix: str) -> dict[str, float | None]:
    names = {"loss": f"{prefix}_loss", "token_accuracy": f"{prefix}_mean_token_accuracy"}
    return {names.get(name, f"{prefix}_{name}"): _finite(value) for name, value in metrics.items()}


def _hyperparameters(job: TuningJob, recipe_rate: float | None) -> dict[str, Any]:
    spec, statistics = job.effective_spec, job.dataset_statistics
    used = spec.hyperparameters if spec else None
    asked = job.spec.hyperparameters if job.spec else None
    if used is None:
        return {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    num_train = statistics.num_train if statistics else 0
    epochs: Any = asked.num_epochs if asked and asked.num_epochs is not None else "auto"
    if epochs == "auto" and num_train and used.num_steps and used.batch_size:
        epochs = max(1, round(used.num_steps * used.batch_size / num_train))
    if isinstance(epochs, float) and epochs.is_integer():
        epochs = int(epochs)
    multiplier = round(used.learning_rate / recipe_rate, 6) if used.learning_rate and recipe_rate else "auto"
    return {"n_epochs": epochs, "batch_size": used.batch_size, "learning_rate_multiplier": multiplier}


def _trained_tokens(job: TuningJob) -> int | None:
    """About how many tokens the training read, once the job has ended."""
    statistics, spec = job.dataset_statistics, job.effective_spec
    if job.state is not JobState.SUCCEEDED or statistics is None or spec is None or job.progress is None:
        return None
    batch_size = spec.hyperparameters.batch_size or 0
    return round(job.progress.step * batch_size * (statistics.mean_input_tokens + statistics.mean_target_tokens))


def _model(job: TuningJob) -> str | None:
    return version_model(job.result.version) if job.result and job.result.version else None


def _job_id(job: TuningJob) -> str:
    return job.name.replace("tuningJobs/", "ftjob-", 1)


def _event_prefix(job: TuningJob) -> str:
    return job.name.replace("tuningJobs/", "ftevent-", 1)


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
