"""The one table of what each method needs: roles, what a request may ask for, whether it is audited, what it costs.

A method that is not in it is refused. What is refused here depends on the request alone: creating under a name, moving
an alias. Whatever a request looks up is the handlers' part: to a caller who may not name it, it does not exist.
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


def _no_fields(request: Any) -> Fields:
    return {}


def _free(message: Any) -> int:
    return 0


def _no_check(caller: Caller, request: Any) -> None:
    return None


@dataclass(frozen=True)
class Rule:
    """Any of `roles` may call it; admins may always."""

    roles: frozenset[Role]
    audited: bool = False
    """It changes something, or hands out a prompt's bytes."""
    about: Callable[[Any], Fields] = _no_fields
    """What a request is about, for logs and the audit: `prompt`, `job`. May get the first of several messages."""
    check: Callable[[Caller, Any], None] = _no_check
    """Raises PermissionDenied for a request that this caller may not make though the method is theirs."""
    tokens: Callable[[Any], int] = _free
    """Tokens that a response stands for."""
    stored_bytes: Callable[[Any], int] = _free
    """Bytes of dataset that a request carries."""
    announced_bytes: Callable[[Any], int] = _free
    """Bytes of dataset that a request says will follow."""
    made: Callable[[Any], Fields] = _no_fields
    """What only the (first) response can tell, for logs and the audit: `job`, `dataset` or `version` that was made or
    used.
    """


def prompt_of(reference: str) -> str:
    """The prompt's name in `name`, `name@alias`, `name@7`, `prompts/name`, `prompts/name/versions/7`; nothing is
    checked.
    """
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
    """The bare model has no name to hide."""
    if not request.input.prompt:
        caller.require_prompt("")


def _may_create_job(caller: Caller, request: Any) -> None:
    """The prompt is theirs, and only a publisher moves what is served."""
    spec = request.spec
    caller.require_prompt(spec.prompt)
    if spec.publish.alias != _NO_ALIAS and not caller.has_role(Role.PUBLISHER):
        alias = spec.publish.alias or "default"
        raise PermissionDenied(
            f"the job would move the alias {alias!r}, which takes the role publisher; with publish.alias = '-' it moves none",
            caller=caller.name,
            role=Role.PUBLISHER.value,
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


def _request_bytes(request: Any) -> int:
    return int(request.ByteSize())


def _answering(tokens: Callable[[Any], int]) -> Rule:
    return Rule(_GENERATE, about=_generation_about, check=_may_generate, tokens=tokens, made=_version_started)


_TUNING, _PROMPTS, _GENERATION = (f"/prompttuning.v1.{name}Service/" for name in ("Tuning", "Prompt", "Generation"))

RULES: Mapping[str, Rule] = {
    f"{_TUNING}UploadDataset": Rule(
        _TUNE, True, stored_bytes=_chunk_bytes, announced_bytes=_announced, made=_dataset_made
    ),
    f"{_TUNING}ListDatasets": Rule(_READ),
    f"{_TUNING}GetDataset": Rule(_READ, about=_about_dataset),
    f"{_TUNING}DeleteDataset": Rule(_TUNE, True, _about_dataset),
    f"{_TUNING}CreateTuningJob": Rule(
        _TUNE,
        True,
        lambda request: {"prompt": request.spec.prompt[:200]},
        _may_create_job,
        stored_bytes=_request_bytes,
        made=_job_made,
    ),
    f"{_TUNING}GetTuningJob": Rule(_READ, about=_about_job),
    f"{_TUNING}ListTuningJobs": Rule(_READ),
    f"{_TUNING}WatchTuningJob": Rule(_READ, about=_about_job),
    f"{_TUNING}CancelTuningJob": Rule(_TUNE, True, _about_job),
    f"{_TUNING}PauseTuningJob": Rule(_TUNE, True, _about_job),
    f"{_TUNING}ResumeTuningJob": Rule(_TUNE, True, _about_job),
    f"{_TUNING}DeleteTuningJob": Rule(_TUNE, True, _about_job),
    f"{_TUNING}GetServiceInfo": Rule(_READ),
    f"{_PROMPTS}ListPrompts": Rule(_READ),
    f"{_PROMPTS}GetPrompt": Rule(_READ, about=_about_prompt("name")),
    f"{_PROMPTS}ListPromptVersions": Rule(_READ, about=_about_prompt("parent")),
    f"{_PROMPTS}GetPromptVersion": Rule(_READ, about=_about_prompt("name")),
    f"{_PROMPTS}GetPromptStatus": Rule(_READ, about=_about_prompt("name")),
    f"{_PROMPTS}SetPromptAlias": Rule(_PUBLISH, True, _alias_about, made=_revision_made),
    f"{_PROMPTS}DeletePromptVersion": Rule(_PUBLISH, True, _about_prompt("name"), made=_revision_made),
    f"{_PROMPTS}DownloadPromptVersion": Rule(_TUNE | _PUBLISH, True, _about_prompt("name"), made=_version_made),
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
