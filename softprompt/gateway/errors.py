"""Errors in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`.

One table maps the services' errors to HTTP statuses. Texts about the gateway's own surroundings, such as addresses of
services, go to the log and not to callers.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from shared import errors
from shared.text.parsing_message import plain_message
from softprompt.gateway.refused import REFUSED_FIELDS, REFUSED_VALUES

log = logging.getLogger(__name__)

Rename = Callable[[str], str]
"""Turns a service's name of a field into the name of the request's parameter."""

INVALID, SERVER = "invalid_request_error", "server_error"
_RETRY_SECONDS = 1.0
_STATUSES: Mapping[type[errors.SoftPromptError], tuple[int, str, str | None]] = {
    errors.InvalidInput: (400, INVALID, "invalid_value"),
    errors.NotFound: (404, INVALID, "not_found"),
    errors.AlreadyExists: (409, INVALID, "already_exists"),
    errors.PreconditionFailed: (400, INVALID, "failed_precondition"),
    errors.Conflict: (409, INVALID, "conflict"),
    errors.Overloaded: (429, "rate_limit_error", "rate_limit_exceeded"),
    errors.Unavailable: (503, SERVER, "service_unavailable"),
    errors.DeadlineExceeded: (504, SERVER, "timeout"),
    errors.Cancelled: (503, SERVER, "service_unavailable"),
    errors.PermissionDenied: (403, INVALID, "permission_denied"),
    errors.Unauthenticated: (401, INVALID, "invalid_api_key"),
    errors.Unimplemented: (501, SERVER, "not_implemented"),
    errors.DamagedBlob: (500, SERVER, "damaged_data"),
}
"""Status, type and code of each error."""
_CODES_OF_STATUSES = {404: "unknown_url", 405: "method_not_allowed"}
_MODEL_KINDS = ("prompt", "version", "alias", "model")
_TOO_LONG = re.compile(r"has \d+ tokens; at most \d+ fit")
_SHOWN_CHARS = 200
_JOB = re.compile(r"tuningJobs/|(?<=\bjob ')(?=[0-9a-z]{26}')")
_NUMBER = re.compile(r"\[\d+\]")
_MEMBER = re.compile(r"str|int|float|bool|none|[A-Z]\w*")
"""Names of a union's members in pydantic's locations."""


class ApiError(Exception):
    """An error as callers get it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as an object of the API."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as a whole response."""
        return JSONResponse(self.body, self.status, self.headers)


def bad_value(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """400 for one parameter; `message` can follow its name."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def missing(param: str) -> ApiError:
    """400 for a parameter that is needed and not there."""
    return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def unsupported(param: str, message: str) -> ApiError:
    """400 for a parameter or a value that OpenAI's API has and this one has not."""
    return ApiError(400, f"{param}: {message}", param=param, code="unsupported_parameter")


def no_such_model(model: str) -> ApiError:
    """404 for a model that does not exist or that the caller may not use."""
    shown = model[:_SHOWN_CHARS]
    text = f"The model {shown!r} does not exist, or you may not use it; GET /v1/models lists yours."
    return ApiError(404, text, param="model", code="model_not_found")


def api_error(error: BaseException, rename: Rename = lambda field: field, model: str = "") -> ApiError:
    """The error for callers. `model`: the model that the request names."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        code = _CODES_OF_STATUSES.get(error.status_code)
        return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers)
    if isinstance(error, ValidationError):
        return _of_validation(error)
    if isinstance(error, TimeoutError):
        error = errors.DeadlineExceeded(str(error))
    if isinstance(error, errors.SoftPromptError) and type(error) in _STATUSES:
        return _of_service(error, rename, model)
    log.error("unexpected error in the gateway", exc_info=error)
    return ApiError(500, "internal error; the gateway's log has the details under this request id", type=SERVER)


def _of_service(error: errors.SoftPromptError, rename: Rename, model: str) -> ApiError:
    status, kind, code = _STATUSES[type(error)]
    message, param, headers = error.message, None, dict[str, str]()
    match error:
        case errors.InvalidInput():
            if error.violations[0].field in ("trainer", "inference"):
                return _misconfigured(error)
            named = [(rename(violation.field), violation.description) for violation in error.violations]
            param, message = named[0][0], "; ".join(f"{name}: {text}" for name, text in named[:5])
            if param == "model":
                return no_such_model(model)
            if _TOO_LONG.match(named[0][1]):
                message = message.removesuffix(" or set truncate")  # a field of GenerationService
                code = "context_length_exceeded"
        case errors.NotFound():
            if error.kind in _MODEL_KINDS and model:
                return no_such_model(model)
            if error.kind == "dataset":
                param, message = "id", f"No such file: {error.name!r}"
            if error.kind == "tuning job":
                param, message = "fine_tuning_job_id", f"No such fine-tuning job: {'ftjob-' + error.name!r}"
        case errors.Overloaded() if error.is_of_budget:
            kind = code = "insufficient_quota"
            headers = {"x-should-retry": "false"}  # OpenAI's clients would try a 429 again
        case errors.Overloaded():
            headers = _retry_after(error.retry_after_seconds)
        case errors.Unavailable() | errors.DeadlineExceeded() if (
            "endpoint" in error.metadata or "proxy" in error.metadata
        ):
            log.warning("a service can't be reached: %s", error.message)
            message, headers = "a service that this request needs can't be reached now; try again", _retry_after()
        case errors.DeadlineExceeded():
            message, headers = "a service did not answer in time; try again", _retry_after()
        case errors.Unavailable() | errors.Cancelled():
            headers = _retry_after()
        case errors.Unauthenticated():
            headers = {"WWW-Authenticate": "Bearer"}
            message = f"{message} (the API key is the token of a caller, sent as `Authorization: Bearer TOKEN`)"
    message = _JOB.sub("ftjob-", message.replace("datasets/sha256-", "file-"))  # as this API names them
    return ApiError(status, message, type=kind, param=param, code=code, headers=headers)


def _misconfigured(error: errors.InvalidInput) -> ApiError:
    log.error("the gateway's settings are wrong: %s", error.message)
    text, code = "the gateway is not connected to its services", "service_unavailable"
    return ApiError(503, text, type=SERVER, code=code, headers=_retry_after())


def _retry_after(seconds: float = _RETRY_SECONDS) -> dict[str, str]:
    """`Retry-After` in whole seconds, and in milliseconds as OpenAI's clients read it."""
    return {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, math.ceil(1000 * seconds)))}


def _of_validation(error: ValidationError) -> ApiError:
    found: Any = error.errors(include_url=False, include_context=False)
    reason, first = min(((_reason(one), one) for one in found), key=lambda pair: not pair[0])
    param = _param(first)
    if first["type"] == "extra_forbidden":
        return unknown_field(param)
    if first["type"] == "missing":
        return missing(param)
    if first["type"] == "literal_error" and param.rpartition(".")[2] in REFUSED_FIELDS:
        return unknown_field(param)
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    text = plain_message(first["msg"]) + (f": {reason}" if reason else "")
    return ApiError(400, f"{param or 'the body'}: {text}", param=param or None, code=code)


def _param(found: Any) -> str:
    return param_of(found["loc"], keeps_last=found["type"] in ("extra_forbidden", "missing"))


def _reason(found: Any) -> str:
    """Why a value is not offered; empty if it is wrong and no value of OpenAI's API."""
    name = _NUMBER.sub("", _param(found))
    return REFUSED_VALUES.get(name) or REFUSED_VALUES.get(f"{name}={found['input']}"[:_SHOWN_CHARS], "")


def unknown_field(param: str) -> ApiError:
    """400 for a parameter that this endpoint does not have."""
    name, shown = param.rpartition(".")[2], param[:_SHOWN_CHARS]
    if (reason := REFUSED_FIELDS.get(name)) is not None:
        return ApiError(400, f"Unsupported parameter: '{shown}': {reason}.", param=shown, code="unsupported_parameter")
    return ApiError(400, f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")


def param_of(location: tuple[str | int, ...], keeps_last: bool) -> str:
    """pydantic's location as in `messages[2].content`, without a union's members, but the last name if `keeps_last`."""
    text = ""
    for index, part in enumerate(location):
        if isinstance(part, int):
            text += f"[{part}]"
        elif (keeps_last and index == len(location) - 1) or (part.isidentifier() and not _MEMBER.fullmatch(part)):
            text += f".{part}" if text else part
    return text
