"""The service's description of itself, and of a stored dataset, as messages."""

from __future__ import annotations

from prompttuning.v1 import tuning_pb2

from shared.wire.enums import TASKS
from shared.wire.fields import write_duration, write_timestamp
from trainer_service.convert.common import base_model_to_wire
from trainer_service.convert.spec import hyperparameters_to_wire
from trainer_service.datasets.ledger import OwnedDataset
from trainer_service.datasets.store import StoredDataset
from trainer_service.jobs.model import JobCounts
from trainer_service.jobs.record import to_datetime
from trainer_service.service_info import ServiceInfo
from trainer_service.training.spec import TaskKind


def dataset_to_wire(owned: OwnedDataset) -> tuning_pb2.Dataset:
    """The message of a tenant's dataset."""
    return tuning_pb2.Dataset(
        name=owned.name,
        size_bytes=owned.size_bytes,
        num_examples=owned.num_examples,
        task=TASKS.to_wire(TaskKind(owned.task)) if owned.task else tuning_pb2.TASK_KIND_UNSPECIFIED,
        num_labels=owned.num_labels,
        create_time=write_timestamp(to_datetime(owned.create_time)),
        last_use_time=write_timestamp(to_datetime(owned.last_use_time)),
        num_jobs=owned.num_jobs,
        labels=owned.labels,
        file_name=owned.file_name,
    )


def uploaded_to_wire(stored: StoredDataset) -> tuning_pb2.UploadDatasetResponse:
    """The answer to an upload."""
    return tuning_pb2.UploadDatasetResponse(
        dataset=stored.name, num_examples=stored.num_examples, task=TASKS.to_wire(stored.task), labels=stored.labels
    )


def info_to_wire(info: ServiceInfo, counts: JobCounts) -> tuning_pb2.GetServiceInfoResponse:
    """The message of the service's models, limits, defaults and counts."""
    limits = tuning_pb2.TuningLimits(
        max_virtual_tokens=info.limits.max_virtual_tokens,
        max_examples=info.upload_limits.max_examples,
        max_dataset_bytes=info.upload_limits.max_dataset_bytes,
        max_line_bytes=info.upload_limits.max_line_bytes,
        max_queued_jobs=info.limits.max_queued_jobs,
        max_runtime=write_duration(info.limits.max_runtime_seconds),
        max_positions=info.limits.max_positions,
    )
    defaults = info.default_hyperparameters
    return tuning_pb2.GetServiceInfoResponse(
        software_version=info.software_version,
        base_models=map(base_model_to_wire, info.base_models),
        limits=limits,
        default_hyperparameters=None if defaults is None else hyperparameters_to_wire(defaults),
        queued_jobs=counts.queued,
        running_jobs=counts.running,
        num_workers=counts.num_workers,
        unavailable_base_models=[
            tuning_pb2.UnavailableBaseModel(id=id, reason=reason)
            for id, reason in sorted(info.models.unavailable.items())
        ],
    )
