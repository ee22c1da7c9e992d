"""Resource names as requests carry them."""

from __future__ import annotations

from shared.errors import InvalidInput
from shared.names import check_name
from trainer_service.jobs.model import JOB_NAME
from trainer_service.pages import MAX_PAGE_SIZE

DEFAULT_PAGE_SIZE = 50


def job_id_of(name: str, field: str = "name") -> str:
    """`tuningJobs/<id>` -> id."""
    match = JOB_NAME.fullmatch(name)
    if not match:
        raise InvalidInput.of(field, f"{name[:120]!r} must look like tuningJobs/<id>")
    return match[1]


def prompt_of(name: str, field: str = "name") -> str:
    """`prompts/{prompt}`, or the bare prompt name -> prompt."""
    return check_name(name.removeprefix("prompts/"), field)


def page_size_of(page_size: int) -> int:
    """0 means the default; a value above the maximum is reduced to it, as is usual in Google's APIs."""
    if page_size < 0:
        raise InvalidInput.of("page_size", f"must not be negative, but is {page_size}")
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def event_number_of(after: int) -> int:
    """The number of the event to start after. Raises InvalidInput if it is negative."""
    if after < 0:
        raise InvalidInput.of("after", f"must not be negative, but is {after}")
    return after
