"""What a caller hands in to make a job, before its examples are stored: a spec, and where the examples come from."""

from __future__ import annotations

from dataclasses import dataclass

from trainer_service.jobs.model import TuningSpec
from trainer_service.training.spec import Example


@dataclass(frozen=True)
class InlineExamples:
    """Examples inside the request. `field` is the request's name for the list, to name an offending example with."""

    examples: tuple[Example, ...]
    field: str


@dataclass(frozen=True)
class UploadedDataset:
    """`datasets/sha256-<hex>`, uploaded before."""

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
    """`spec` has no dataset names yet: `dataset` and `validation` become them."""

    spec: TuningSpec
    dataset: ExampleSource
    validation: ExampleSource | None = None
    request_id: str = ""
