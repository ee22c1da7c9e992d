"""Jobs that a blocking client returns can read their own report."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from softprompt.types.jobs import TuningJob

C = TypeVar("C", bound=type)
_RETURNS = frozenset({"TuningJob", "list[TuningJob]"})


def owns_jobs(client: C) -> C:
    """Wrap the methods of a class that return jobs, by their annotations. The class has `job_report(name)`."""
    for name, method in list(vars(client).items()):
        if inspect.isfunction(method) and method.__annotations__.get("return") in _RETURNS:
            setattr(client, name, _owning(method))
    return client


def _owning(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *given: Any, **named: Any) -> Any:
        found = method(self, *given, **named)
        for job in found if isinstance(found, list) else [found]:
            _own(self, job)
        return found

    return call


def _own(client: Any, job: TuningJob) -> None:
    object.__setattr__(job, "_read_report", lambda **options: client.job_report(job.name, **options))
