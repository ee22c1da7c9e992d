"""A caller's request for a job before its examples are stored: a spec, and where the examples come from."""

from __future__ import annotations

from dataclasses import dataclass

from trainer_service.jobs.model import TuningSpec
from trainer_service.training.spec import Example


@dataclass(frozen=True)
class InlineExamples:
    """Examples inside the request. `field` is the request's field with the list, for errors."""

    examples: tuple[Example, ...]
    field: str


@dataclass(frozen=True)
class UploadedDataset:
    """A dataset that was uploaded before, `datasets/sha256-<hex>`."""

    name: str
    field: str


@dataclass(frozen=True)
class DatasetUri:
    """A file under one of the trainer's dataset roots; it is copied into the dataset store when the job is created."""

    uri: str
    field: str


ExampleSource = InlineExamples | UploadedDataset | DatasetUri


@dataclass(frozen=True)
class JobRequest:
    """A request for a job. `spec` has no dataset names yet; they follow from `dataset` and `validation`."""

    spec: TuningSpec
    dataset: ExampleSource | None
    """None only if the request is to be checked without its data."""
    validation: ExampleSource | None = None
    request_id: str = ""
    validate_only: bool = False
    """Check the request and create no job."""
