"""Specs of jobs that repeat or continue another job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from shared.errors import InvalidInput, PreconditionFailed
from shared.values.enums import InitMethod
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.spec import TuningSpec
from softprompt.client.arguments import checked
from softprompt.types.jobs import TuningJob


def cloned_spec(job: TuningJob, changes: Mapping[str, Any]) -> TuningSpec:
    """The job's spec with `changes` to its fields; hyperparameters that are None stay. Raises InvalidInput."""
    if job.spec is None:
        raise PreconditionFailed(f"{job.name} has no spec in the trainer's answer")
    known = {field.name for field in fields(TuningSpec)}
    if unknown := sorted(set(changes) - known):
        raise InvalidInput.of(unknown[0], f"is not a field of a spec; the fields are {', '.join(sorted(known))}")
    made = {"deadline": None, **changes}
    if made.get("validation_dataset") is not None:
        made.setdefault("validation_fraction", None)
    elif made.get("validation_fraction") is not None:
        made["validation_dataset"] = None
    if made.get("hyperparameters") is not None:
        made["hyperparameters"] = _merged(job.spec.hyperparameters, _hyperparameters(made))
    return replace(job.spec, **made)


def continued_spec(job: TuningJob, changes: Mapping[str, Any]) -> TuningSpec:
    """`cloned_spec` that starts from the job's version or kept best prompt. Raises PreconditionFailed for neither."""
    source = job.result.version if job.result is not None and job.result.version else job.name
    if source == job.name and not job.best_prompt_kept:
        raise PreconditionFailed(f"{job.name} is {job.state} and has no prompt to start from", state=job.state.value)
    asked = _hyperparameters(changes)
    start = Hyperparameters(init=Init(InitMethod.FROM_PROMPT, source=source))
    spec = cloned_spec(job, {**changes, "hyperparameters": _merged(asked, start)})
    if asked.num_virtual_tokens is None:  # the source's length
        return replace(spec, hyperparameters=replace(spec.hyperparameters, num_virtual_tokens=None))
    return spec


def _hyperparameters(changes: Mapping[str, Any]) -> Hyperparameters:
    given = changes.get("hyperparameters")
    return Hyperparameters() if given is None else checked(given, Hyperparameters, "hyperparameters")


def _merged(old: Hyperparameters, new: Hyperparameters) -> Hyperparameters:
    """`new` over `old`. Steps and epochs exclude each other, so a new value of one removes the other."""
    given = {
        field.name: value for field in fields(new) if (value := getattr(new, field.name)) is not None and value != {}
    }
    if "num_steps" in given or "num_epochs" in given:
        old = replace(old, num_steps=None, num_epochs=None)
    return replace(old, **given)
