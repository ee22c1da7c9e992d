"""The table of all methods: required roles, checks of the request, whether calls are audited and may be repeated,
what they cost.

Methods that are not in the table are refused. The checks here depend on the request alone, for example on the name to
create or the alias to move. Handlers check the resources that a request looks up: if a caller may not use a resource,
they answer as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from shared.caller import Caller, Role
from shared.errors import PermissionDenied
from shared.names import NO_ALIAS

Fields = Mapping[str, str]
_ALL = frozenset({Role.VIEWER, Role.GENERATOR, Role.TUNER, Role.PUBLISHER})
_READ = frozenset({Role.VIEWER, Role.TUNER, Role.PUBLISHER})
_GENERATE = frozenset({Role.GENERATOR})
_TUNE = frozenset({Role.TUNER})
_PUBLISH = frozenset({Role.PUBLISHER})
_ADMINISTER: frozenset[Role] = frozenset()


@dataclass(frozen=True)
class MethodRule:
    """The rule for one method."""

    roles: frozenset[Role]
    """The caller needs one of these roles, or the role admin."""
    audited: bool = False
    """Whether calls are audited: the method changes something, or returns a prompt's bytes or examples."""
    about: Callable[[Any], Fields] = lambda request: {}
    """Fields of a request for logs and the audit: `prompt`, `job`. May get the first of several messages."""
    check: Callable[[Caller, Any], None] = lambda caller, request: None
    """Raises PermissionDenied for a request that a caller with the right role may still not make."""
    tokens: Callable[[Any], int] = lambda response: 0
    """Number of tokens to charge for a response."""
    stored_bytes: Callable[[Any], int] = lambda request: 0
    """Bytes of a dataset in a request."""
    announced_bytes: Callable[[Any], int] = lambda request: 0
    """Bytes of a dataset that a request announces."""
    made: Callable[[Any], Fields] = lambda response: {}
    """Fields of the first response for logs and the audit: the `job`, `dataset` or `version` created or used."""
    idempotent: bool = False
    """Whether an audited call may be repeated: it changes nothing, or the second call finds the change made."""

    @property
    def repeatable(self) -> bool:
        """Whether clients may repeat a call whose answer they did not get."""
        return self.idempotent or not self.audited


def prompt_of(reference: str) -> str:
    """The prompt's name in `name`, `name@alias`, `name@7`, `prompts/name` or `prompts/name/versions/7`, unchecked."""
    return reference.removeprefix("prompts/").partition("@")[0].partition("/")[0]


def _field(name: str, path: str, prefix: str = "") -> Callable[[Any], Fields]:
    """Reads the field at `path` of a message, without the prefix; logs and the audit get it as `name`."""
    value = attrgetter(path)
    return lambda message: {name: str(value(message)).removeprefix(prefix)[:200]}


def _prompt(path: str) -> Callable[[Any], Fields]:
    return _field("prompt", path, "prompts/")


def _may_generate(caller: Caller, request: Any) -> None:
    """Checks only calls of the bare model; the handler checks prompts, so that hidden ones seem not to exist."""
    if not request.input.prompt:
        caller.require_prompt("")


def _may_create_job(caller: Caller, request: Any) -> None:
    """The caller must be allowed to use the prompt, and must be a publisher if the job is to move an alias."""
    spec = request.spec
    caller.require_prompt(spec.prompt)
    if spec.publish.alias != NO_ALIAS and not caller.has_role(Role.PUBLISHER):
        alias = spec.publish.alias or "default"
        raise PermissionDenied(
            f"the job would move the alias {alias!r}, which requires the role publisher; "
            f"set publish.alias to {NO_ALIAS!r} to move none",
            caller=caller.name,
            role=Role.PUBLISHER.value,
        )


def _may_read_answers(caller: Caller, request: Any) -> None:
    """Answers contain examples of a dataset, which viewers can't read elsewhere."""
    if not request.omit_answers and not caller.has_role(Role.TUNER, Role.PUBLISHER):
        raise PermissionDenied(
            "the answers in a report require the role tuner or publisher; set omit_answers to get the report without "
            "them",
            caller=caller.name,
            role=Role.TUNER.value,
        )


def _may_import(caller: Caller, request: Any) -> None:
    if request.WhichOneof("part") != "header":
        return
    caller.require_prompt(prompt_of(request.header.prompt))


def _alias_about(request: Any) -> Fields:
    targets = ",".join(f"{target.version}x{target.weight:g}" for target in request.targets[:10])
    return {"prompt": request.prompt.removeprefix("prompts/")[:200], "alias": request.alias[:200], "targets": targets}


def _job_bytes(only_checked: bool) -> Callable[[Any], int]:
    """Bytes of the requests that create a job, or of those that only check one."""
    return lambda request: int(request.ByteSize()) if request.validate_only == only_checked else 0


_TUNING, _PROMPTS, _GENERATION = (f"/prompttuning.v1.{name}Service/" for name in ("Tuning", "Prompt", "Generation"))
_JOB, _DATASET, _WEBHOOK = _field("job", "name", "tuningJobs/"), _field("dataset", "name"), _field("webhook", "name")
_VERSION_STARTED, _REVISION = _field("version", "start.version"), _field("revision", "revision")
_INPUT = MethodRule(_GENERATE, about=_field("prompt", "input.prompt"), check=_may_generate)

RULES: Mapping[str, MethodRule] = {
    f"{_TUNING}UploadDataset": MethodRule(
        _TUNE,
        True,
        stored_bytes=lambda request: len(request.chunk),
        announced_bytes=lambda request: request.header.size_bytes,
        made=_field("dataset", "dataset"),
        idempotent=True,  # addressed by its content
    ),
    f"{_TUNING}ListDatasets": MethodRule(_READ),
    f"{_TUNING}GetDataset": MethodRule(_READ, about=_DATASET),
    f"{_TUNING}DownloadDataset": MethodRule(_TUNE, True, _DATASET, idempotent=True),
    f"{_TUNING}DeleteDataset": MethodRule(_TUNE, True, _DATASET),
    f"{_TUNING}CreateTuningJob": MethodRule(
        _TUNE,
        True,
        _field("prompt", "spec.prompt"),
        _may_create_job,
        stored_bytes=_job_bytes(False),
        announced_bytes=_job_bytes(True),
        made=_field("job", "job.name", "tuningJobs/"),
        idempotent=True,  # by its request_id
    ),
    f"{_TUNING}GetTuningJob": MethodRule(_READ, about=_JOB),
    f"{_TUNING}ListTuningJobs": MethodRule(_READ),
    f"{_TUNING}WatchTuningJob": MethodRule(_READ, about=_JOB),
    f"{_TUNING}GetJobReport": MethodRule(_READ, True, _JOB, _may_read_answers, idempotent=True),
    f"{_TUNING}CancelTuningJob": MethodRule(_TUNE, True, _JOB, idempotent=True),
    f"{_TUNING}PauseTuningJob": MethodRule(_TUNE, True, _JOB),
    f"{_TUNING}ResumeTuningJob": MethodRule(_TUNE, True, _JOB),
    f"{_TUNING}DeleteTuningJob": MethodRule(_TUNE, True, _JOB),
    f"{_TUNING}ListWebhooks": MethodRule(_ADMINISTER),
    f"{_TUNING}TestWebhook": MethodRule(_ADMINISTER, True, _WEBHOOK),
    f"{_TUNING}RetryWebhook": MethodRule(_ADMINISTER, True, _WEBHOOK, idempotent=True),
    f"{_TUNING}ListUsage": MethodRule(_READ),
    f"{_TUNING}GetServiceInfo": MethodRule(_READ),
    f"{_PROMPTS}ListPrompts": MethodRule(_READ),
    f"{_PROMPTS}GetPrompt": MethodRule(_READ, about=_prompt("name")),
    f"{_PROMPTS}ListPromptVersions": MethodRule(_READ, about=_prompt("parent")),
    f"{_PROMPTS}GetPromptVersion": MethodRule(_READ, about=_prompt("name")),
    f"{_PROMPTS}GetPromptStatus": MethodRule(_READ, about=_prompt("name")),
    f"{_PROMPTS}SetPromptAlias": MethodRule(_PUBLISH, True, _alias_about, made=_REVISION),
    f"{_PROMPTS}DeletePromptVersion": MethodRule(_PUBLISH, True, _prompt("name"), made=_REVISION),
    f"{_PROMPTS}DownloadPromptVersion": MethodRule(
        _TUNE | _PUBLISH, True, _prompt("name"), made=_field("version", "version.name"), idempotent=True
    ),
    f"{_PROMPTS}ImportPromptVersion": MethodRule(
        _PUBLISH, True, _field("prompt", "header.prompt"), _may_import, made=_field("version", "version.name")
    ),
    f"{_PROMPTS}WatchPrompts": MethodRule(_READ),
    f"{_GENERATION}Generate": replace(
        _INPUT,
        tokens=lambda response: response.start.input_tokens + response.end.output_tokens,
        made=_VERSION_STARTED,
    ),
    f"{_GENERATION}GenerateStream": replace(
        _INPUT,
        tokens=lambda response: response.start.input_tokens + len(response.delta.token_ids),
        made=_VERSION_STARTED,
    ),
    f"{_GENERATION}Score": replace(
        _INPUT,
        tokens=lambda response: response.start.input_tokens + sum(score.num_tokens for score in response.scores),
        made=_VERSION_STARTED,
    ),
    f"{_GENERATION}CountTokens": _INPUT,
    f"{_GENERATION}GetModelInfo": MethodRule(_ALL),
    f"{_GENERATION}ListLoadedPrompts": MethodRule(_ALL),
}
