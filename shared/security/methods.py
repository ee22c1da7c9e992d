"""The table of all methods: required roles, checks of the request, whether calls are audited and may be repeated,
what they cost.

Methods that are not in the table are refused. The checks here depend on the request alone, for example on the name to
create or the alias to move. Handlers check the resources that a request looks up: if a caller may not use a resource,
they answer as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.caller import Caller, Role
from shared.errors import PermissionDenied

Fields = Mapping[str, str]
_NO_ALIAS = "-"
_ALL = frozenset({Role.VIEWER, Role.GENERATOR, Role.TUNER, Role.PUBLISHER})
_READ = frozenset({Role.VIEWER, Role.TUNER, Role.PUBLISHER})
_GENERATE = frozenset({Role.GENERATOR})
_TUNE = frozenset({Role.TUNER})
_PUBLISH = frozenset({Role.PUBLISHER})
_ADMINISTER: frozenset[Role] = frozenset()


def _no_fields(request: Any) -> Fields:
    return {}


def _free(message: Any) -> int:
    return 0


def _no_check(caller: Caller, request: Any) -> None:
    return None


@dataclass(frozen=True)
class Rule:
    """The rule for one method."""

    roles: frozenset[Role]
    """The caller needs one of these roles, or the role admin."""
    audited: bool = False
    """Whether calls are audited: the method changes something, or returns a prompt's bytes or examples."""
    about: Callable[[Any], Fields] = _no_fields
    """Fields of a request for logs and the audit: `prompt`, `job`. May get the first of several messages."""
    check: Callable[[Caller, Any], None] = _no_check
    """Raises PermissionDenied for a request that a caller with the right role may still not make."""
    tokens: Callable[[Any], int] = _free
    """Number of tokens to charge for a response."""
    stored_bytes: Callable[[Any], int] = _free
    """Bytes of a dataset in a request."""
    announced_bytes: Callable[[Any], int] = _free
    """Bytes of a dataset that a request announces."""
    made: Callable[[Any], Fields] = _no_fields
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


def _about(field: str, name: str = "") -> Callable[[Any], Fields]:
    return lambda request: {name or field: str(getattr(request, field))[:200]}


def _about_prompt(field: str) -> Callable[[Any], Fields]:
    return lambda request: {"prompt": str(getattr(request, field)).removeprefix("prompts/")[:200]}


def _about_job(request: Any) -> Fields:
    return {"job": request.name.removeprefix("tuningJobs/")[:200]}


def _about_dataset(request: Any) -> Fields:
    return {"dataset": request.name[:200]}


def _generation_about(request: Any) -> Fields:
    return {"prompt": request.input.prompt[:200]}


def _may_generate(caller: Caller, request: Any) -> None:
    """Checks only calls of the bare model; the handler checks prompts, so that hidden ones seem not to exist."""
    if not request.input.prompt:
        caller.require_prompt("")


def _may_create_job(caller: Caller, request: Any) -> None:
    """The caller must be allowed to use the prompt, and must be a publisher if the job is to move an alias."""
    spec = request.spec
    caller.require_prompt(spec.prompt)
    if spec.publish.alias != _NO_ALIAS and not caller.has_role(Role.PUBLISHER):
        alias = spec.publish.alias or "default"
        raise PermissionDenied(
            f"the job would move the alias {alias!r}, which requires the role publisher; "
            f"set publish.alias to {_NO_ALIAS!r} to move none",
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


def _import_about(request: Any) -> Fields:
    return {"prompt": request.header.prompt[:200]}


def _answer_tokens(response: Any) -> int:
    return int(response.start.input_tokens + response.end.output_tokens)


def _delta_tokens(response: Any) -> int:
    return int(response.start.input_tokens + len(response.delta.token_ids))


def _score_tokens(response: Any) -> int:
    return int(response.start.input_tokens + sum(score.num_tokens for score in response.scores))


def _chunk_bytes(request: Any) -> int:
    return len(request.chunk)


def _version_started(response: Any) -> Fields:
    return {"version": response.start.version}


def _job_made(response: Any) -> Fields:
    return {"job": response.job.name.removeprefix("tuningJobs/")}


def _dataset_made(response: Any) -> Fields:
    return {"dataset": response.dataset}


def _version_made(response: Any) -> Fields:
    return {"version": response.version.name}


def _revision_made(response: Any) -> Fields:
    return {"revision": str(response.revision)}


def _announced(request: Any) -> int:
    return int(request.header.size_bytes)


def _job_bytes(only_checked: bool) -> Callable[[Any], int]:
    """Bytes of the requests that create a job, or of those that only check one."""
    return lambda request: int(request.ByteSize()) if request.validate_only == only_checked else 0


def _answering(tokens: Callable[[Any], int]) -> Rule:
    return Rule(_GENERATE, about=_generation_about, check=_may_generate, tokens=tokens, made=_version_started)


_TUNING, _PROMPTS, _GENERATION = (f"/prompttuning.v1.{name}Service/" for name in ("Tuning", "Prompt", "Generation"))

RULES: Mapping[str, Rule] = {
    f"{_TUNING}UploadDataset": Rule(
        _TUNE, True, stored_bytes=_chunk_bytes, announced_bytes=_announced, made=_dataset_made, idempotent=True
    ),  # addressed by its content
    f"{_TUNING}ListDatasets": Rule(_READ),
    f"{_TUNING}GetDataset": Rule(_READ, about=_about_dataset),
    f"{_TUNING}DownloadDataset": Rule(_TUNE, True, _about_dataset, idempotent=True),
    f"{_TUNING}DeleteDataset": Rule(_TUNE, True, _about_dataset),
    f"{_TUNING}CreateTuningJob": Rule(
        _TUNE,
        True,
        lambda request: {"prompt": request.spec.prompt[:200]},
        _may_create_job,
        stored_bytes=_job_bytes(False),
        announced_bytes=_job_bytes(True),
        made=_job_made,
        idempotent=True,  # by its request_id
    ),
    f"{_TUNING}GetTuningJob": Rule(_READ, about=_about_job),
    f"{_TUNING}ListTuningJobs": Rule(_READ),
    f"{_TUNING}WatchTuningJob": Rule(_READ, about=_about_job),
    f"{_TUNING}GetJobReport": Rule(_READ, True, _about_job, _may_read_answers, idempotent=True),
    f"{_TUNING}CancelTuningJob": Rule(_TUNE, True, _about_job, idempotent=True),
    f"{_TUNING}PauseTuningJob": Rule(_TUNE, True, _about_job),
    f"{_TUNING}ResumeTuningJob": Rule(_TUNE, True, _about_job),
    f"{_TUNING}DeleteTuningJob": Rule(_TUNE, True, _about_job),
    f"{_TUNING}ListWebhooks": Rule(_ADMINISTER),
    f"{_TUNING}TestWebhook": Rule(_ADMINISTER, True, _about("name", "webhook")),
    f"{_TUNING}RetryWebhook": Rule(_ADMINISTER, True, _about("name", "webhook"), idempotent=True),
    f"{_TUNING}ListUsage": Rule(_READ),
    f"{_TUNING}GetServiceInfo": Rule(_READ),
    f"{_PROMPTS}ListPrompts": Rule(_READ),
    f"{_PROMPTS}GetPrompt": Rule(_READ, about=_about_prompt("name")),
    f"{_PROMPTS}ListPromptVersions": Rule(_READ, about=_about_prompt("parent")),
    f"{_PROMPTS}GetPromptVersion": Rule(_READ, about=_about_prompt("name")),
    f"{_PROMPTS}GetPromptStatus": Rule(_READ, about=_about_prompt("name")),
    f"{_PROMPTS}SetPromptAlias": Rule(_PUBLISH, True, _alias_about, made=_revision_made),
    f"{_PROMPTS}DeletePromptVersion": Rule(_PUBLISH, True, _about_prompt("name"), made=_revision_made),
    f"{_PROMPTS}DownloadPromptVersion": Rule(
        _TUNE | _PUBLISH, True, _about_prompt("name"), made=_version_made, idempotent=True
    ),
    f"{_PROMPTS}ImportPromptVersion": Rule(_PUBLISH, True, _import_about, _may_import, made=_version_made),
    f"{_PROMPTS}WatchPrompts": Rule(_READ),
    f"{_GENERATION}Generate": _answering(_answer_tokens),
    f"{_GENERATION}GenerateStream": Rule(
        _GENERATE, about=_generation_about, check=_may_generate, tokens=_delta_tokens, made=_version_started
    ),
    f"{_GENERATION}Score": _answering(_score_tokens),
    f"{_GENERATION}CountTokens": Rule(_GENERATE, about=_generation_about, check=_may_generate),
    f"{_GENERATION}GetModelInfo": Rule(_ALL),
    f"{_GENERATION}ListLoadedPrompts": Rule(_ALL),
}
