"""Converts domain errors to gRPC statuses and back, with one table for both directions.

A status carries google.rpc details: ErrorInfo (reason = the error's class, metadata), BadRequest for field violations,
RetryInfo if waiting helps. Clients in any language can read them; ours converts them back to the same exceptions.
"""

from __future__ import annotations

import logging
from typing import TypeAlias, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from shared import errors

log = logging.getLogger(__name__)

DOMAIN = "softprompt"

CODES: dict[type[errors.SoftPromptError], int] = {
    errors.InvalidInput: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.PreconditionFailed: code_pb2.FAILED_PRECONDITION,
    errors.Conflict: code_pb2.ABORTED,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    errors.Cancelled: code_pb2.CANCELLED,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.Unimplemented: code_pb2.UNIMPLEMENTED,
    errors.DamagedBlob: code_pb2.INVALID_ARGUMENT,
}
_BY_NAME = {cls.__name__: cls for cls in CODES}
_BY_CODE = {code: cls for cls, code in reversed(list(CODES.items()))}
_MAX_VIOLATIONS = 50  # a status is sent in a header, and proxies cut headers of tens of kilobytes
_MAX_TEXT = 1000
_Detail: TypeAlias = error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo


def status_of(error: BaseException) -> status_pb2.Status:
    """The status for a caller; INTERNAL with a generic text for other exceptions, whose text may have secrets."""
    if not isinstance(error, errors.SoftPromptError):
        return status_pb2.Status(
            code=code_pb2.INTERNAL, message="internal error; the service's log has the details under this request id"
        )
    status = status_pb2.Status(code=CODES[type(error)], message=_clip(error.message))
    _add(status, error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN, metadata=error.metadata))
    if isinstance(error, errors.InvalidInput):
        shown = error.violations[:_MAX_VIOLATIONS]
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=_clip(v.description)) for v in shown
        ]
        _add(status, error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(error, errors.Overloaded):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_from_rpc(error: grpc.RpcError) -> errors.SoftPromptError:
    """The domain error of a failed call, with its violations, metadata and retry delay.

    If the status has no details, its code determines the class.
    """
    status = _rich_status(error)
    if status is None:
        code, text = error.code(), error.details() or ""
        cls = _BY_CODE.get(code.value[0], errors.SoftPromptError)
        return _make(cls, text or code.name, {}, [], None)
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status.details:
        for message in (info, bad_request, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    cls = _BY_NAME.get(info.reason) or _BY_CODE.get(status.code, errors.SoftPromptError)
    violations = [errors.FieldViolation(v.field, v.description) for v in bad_request.field_violations]
    delay = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
    return _make(cls, status.message, dict(info.metadata), violations, delay)


def _rich_status(error: grpc.RpcError) -> status_pb2.Status | None:
    try:
        status: status_pb2.Status | None = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:  # a proxy rewrote the status: only the code is left
        return None
    return status


def _make(
    cls: type[errors.SoftPromptError],
    message: str,
    metadata: dict[str, str],
    violations: list[errors.FieldViolation],
    retry_after_seconds: float | None,
) -> errors.SoftPromptError:
    if cls is errors.InvalidInput:
        return errors.InvalidInput(violations or [errors.FieldViolation("request", message)])
    if cls is errors.Overloaded:
        return errors.Overloaded(
            message, retry_after_seconds=1.0 if retry_after_seconds is None else retry_after_seconds, **metadata
        )
    if cls is errors.NotFound:
        found = errors.NotFound(metadata.get("kind", "resource"), metadata.get("name", ""))
        found.args, found.message = (message,), message
        return found
    return cls(message, **metadata)


def _add(status: status_pb2.Status, detail: _Detail) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
