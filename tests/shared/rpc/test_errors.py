"""Every domain error has a status, and a client gets the same error back."""

from __future__ import annotations

import inspect

import grpc
import pytest
from google.rpc import code_pb2
from grpc_status import rpc_status

from shared import errors
from shared.rpc.errors import CODES, error_from_rpc, status_of

SAMPLES: list[errors.SoftPromptError] = [
    errors.InvalidInput([errors.FieldViolation("spec.prompt", "bad"), errors.FieldViolation("line 3", "worse")]),
    errors.NotFound("prompt", "support-tone"),
    errors.AlreadyExists("taken", name="x"),
    errors.PreconditionFailed("other model", expected="a", found="b"),
    errors.Conflict("moved", current=7),
    errors.Overloaded("full", retry_after_seconds=2.5, limit=3),
    errors.Unavailable("store is unavailable"),
    errors.DeadlineExceeded("late"),
    errors.Cancelled("withdrawn"),
    errors.PermissionDenied("no"),
    errors.Unauthenticated("who"),
    errors.Unimplemented("later"),
    errors.DamagedBlob("cut short"),
]


class FailedCall(grpc.RpcError):
    """The error that a channel raises for a status."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()) -> None:
        super().__init__()
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:  # type: ignore[override]
        return self._metadata


def test_the_table_is_total() -> None:
    declared = {
        cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.SoftPromptError)
    }
    assert declared - {errors.SoftPromptError} == set(CODES)
    assert {type(sample) for sample in SAMPLES} == set(CODES)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_an_error_survives_the_wire(sample: errors.SoftPromptError) -> None:
    wire = rpc_status.to_status(status_of(sample))
    restored = error_from_rpc(FailedCall(wire.code, wire.details, wire.trailing_metadata))
    assert type(restored) is type(sample)
    assert restored.message == sample.message
    assert restored.metadata == sample.metadata
    if isinstance(sample, errors.InvalidInput):
        assert isinstance(restored, errors.InvalidInput)
        assert restored.violations == sample.violations
    if isinstance(sample, errors.Overloaded):
        assert isinstance(restored, errors.Overloaded)
        assert restored.retry_after_seconds == sample.retry_after_seconds


def test_an_unexpected_error_tells_nothing() -> None:
    status = status_of(ValueError("password=hunter2 in /etc/secret"))
    assert status.code == code_pb2.INTERNAL
    assert "hunter2" not in status.message
    assert not status.details


def test_a_plain_status_becomes_an_error_by_its_code() -> None:
    assert isinstance(error_from_rpc(FailedCall(grpc.StatusCode.UNAVAILABLE, "connection refused")), errors.Unavailable)
    assert type(error_from_rpc(FailedCall(grpc.StatusCode.INTERNAL, "oops"))) is errors.SoftPromptError


def test_details_fit_into_a_header() -> None:
    many = errors.InvalidInput([errors.FieldViolation(f"line {n}", "x" * 5000) for n in range(10_000)])
    assert status_of(many).ByteSize() < 64 << 10
