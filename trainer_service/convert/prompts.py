"""Prompts, versions and aliases between the store's records and the protocol's messages."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from prompttuning.v1 import common_pb2, prompts_pb2
from pydantic import ValidationError

from shared.errors import InvalidInput
from shared.names import version_name
from shared.prompt.manifest import Manifest, parse_timestamp
from shared.store.commit import MAX_TARGETS, MAX_WEIGHT, AliasTarget
from shared.store.fleet import Serving
from shared.store.index import Alias, PromptRecord, VersionRecord
from shared.store.replicas import LoadedVersion, ReplicaRecord
from shared.text.template import Template
from shared.values.results import Comparison
from shared.violations import Violations
from shared.wire.fields import write_duration, write_timestamp
from shared.wire.mirror import write
from shared.wire.sampling import write_sampling
from shared.wire.template import read_checked_template, write_template
from trainer_service.convert.common import (
    alias_from_wire,
    base_model_to_wire,
    source_to_wire,
)
from trainer_service.imports import ImportRequest, is_import
from trainer_service.jobs.stored_json import from_plain
from trainer_service.prompts import PromptChange, PromptStatus, Version

_MAX_VERSION = 999_999_999
_MAX_COMPARISONS = 16


def prompt_to_wire(prompt: PromptRecord) -> prompts_pb2.Prompt:
    """The message of a prompt with its aliases."""
    newest = max(prompt.versions.values(), key=lambda record: record.version, default=None)
    return prompts_pb2.Prompt(
        name=f"prompts/{prompt.name}",
        latest_version=0 if newest is None else newest.version,
        num_versions=len(prompt.versions),
        aliases=[alias_to_wire(alias) for _, alias in sorted(prompt.aliases.items())],
        update_time=None if newest is None else write_timestamp(parse_timestamp(newest.created_at)),
    )


def alias_to_wire(alias: Alias) -> prompts_pb2.Alias:
    """The message of an alias."""
    return prompts_pb2.Alias(name=alias.name, targets=targets_to_wire(alias.targets), revision=alias.revision)


def targets_to_wire(targets: Sequence[AliasTarget]) -> list[prompts_pb2.AliasTarget]:
    """The messages of an alias's targets."""
    return [prompts_pb2.AliasTarget(version=target.version, weight=target.weight) for target in targets]


def targets_from_wire(messages: Sequence[prompts_pb2.AliasTarget]) -> tuple[AliasTarget, ...]:
    """Weights are ratios; they become whole numbers, as the store keeps them. Raises InvalidInput."""
    if len(messages) > MAX_TARGETS:
        raise InvalidInput.of("targets", f"has {len(messages)} entries; at most {MAX_TARGETS} are allowed")
    for index, message in enumerate(messages):
        if not 1 <= message.version <= _MAX_VERSION:
            raise InvalidInput.of(f"targets[{index}].version", f"{message.version} is not a version number")
        if not (math.isfinite(message.weight) and message.weight > 0):
            raise InvalidInput.of(f"targets[{index}].weight", f"must be above 0, not {message.weight}")
    weights = _whole_weights([message.weight for message in messages])
    return tuple(AliasTarget(message.version, weight) for message, weight in zip(messages, weights, strict=True))


def _whole_weights(weights: Sequence[float]) -> list[int]:
    """Whole numbers as they are, else the smallest in these ratios: 0.9 and 0.1 are 9 and 1. Ratios beyond MAX_WEIGHT
    are rounded to it.
    """
    if all(weight.is_integer() and weight <= MAX_WEIGHT for weight in weights):
        return [int(weight) for weight in weights]
    fractions = [Fraction(weight).limit_denominator(10_000) for weight in weights]
    if all(fractions):
        whole = [int(fraction * math.lcm(*(item.denominator for item in fractions))) for fraction in fractions]
        whole = [weight // math.gcd(*whole) for weight in whole]
        if max(whole) <= MAX_WEIGHT:
            return whole
    return [max(1, round(weight / max(weights) * MAX_WEIGHT)) for weight in weights]


def version_to_wire(version: Version, manifest: Manifest | None = None) -> prompts_pb2.PromptVersion:
    """What the index knows of a version, and all of it where the manifest was read."""
    prompt, record = version.prompt, version.record
    message = prompts_pb2.PromptVersion(
        name=record.name,
        digest=record.digest,
        size_bytes=record.size_bytes,
        create_time=write_timestamp(parse_timestamp(record.created_at)),
        job="" if is_import(record.job) else record.job,
        base_model=_base_model(record, manifest),
        num_virtual_tokens=record.summary.num_virtual_tokens,
        metrics=record.metrics,
        parent=source_to_wire(record.summary.parent),
        revision=record.revision,
        aliases=prompt.aliases_of(record.version),
    )
    if manifest is not None:
        message.template.CopyFrom(write_template(manifest.template))
        message.labels.extend(manifest.labels)
        message.metrics.update(manifest.metrics)
        message.sampling_defaults.CopyFrom(write_sampling(manifest.sampling_defaults))
        message.recipe.update(_recipe(manifest))
        _add_gate(message, manifest)
    return message


def _add_gate(message: prompts_pb2.PromptVersion, manifest: Manifest) -> None:
    """Versions of earlier releases have the decision alone. What another program wrote there in another form is left
    out.
    """
    gate = manifest.gate
    if isinstance(gate, str):
        message.gate = gate
    elif isinstance(gate, dict):
        message.gate, message.verdict = str(gate.get("decision", "")), str(gate.get("verdict", ""))
        for one in (listed if isinstance(listed := gate.get("comparisons"), list) else [])[:_MAX_COMPARISONS]:
            with contextlib.suppress(ValidationError):
                message.comparisons.append(write(from_plain(Comparison, one), common_pb2.Comparison()))


def _recipe(manifest: Manifest) -> Any:
    """As the manifest has it, but for the name of a prompt that the caller may not name."""
    recipe: Any = copy.deepcopy(dict(manifest.recipe))
    init = (recipe.get("hyperparameters") or {}).get("init") or {}
    if isinstance(init.get("source_version"), str):
        init["source_version"] = source_to_wire(init["source_version"])
    return recipe


def _base_model(record: VersionRecord, manifest: Manifest | None) -> common_pb2.BaseModel:
    if manifest is not None:
        return base_model_to_wire(manifest.base_model)
    summary = record.summary
    return common_pb2.BaseModel(
        id=summary.base_model, fingerprint=summary.base_model_fingerprint, hidden_size=summary.hidden_size
    )


def import_from_wire(header: prompts_pb2.ImportHeader) -> ImportRequest:
    """Raises InvalidInput."""
    violations = Violations()
    template = read_checked_template(header.template, "header.template", violations)
    violations.raise_if_any()
    return ImportRequest(
        prompt=header.prompt,
        base_model=header.base_model,
        template=template or Template(),
        labels=tuple(header.labels),
        alias=alias_from_wire(header.alias),
        request_id=header.request_id,
    )


def change_to_wire(change: PromptChange) -> prompts_pb2.WatchPromptsResponse:
    """The message of a change in the prompt store."""
    message = prompts_pb2.WatchPromptsResponse(revision=change.revision, store_id=change.store_id)
    if change.snapshot is not None:
        message.snapshot.CopyFrom(
            prompts_pb2.PromptSnapshot(prompts=[prompt_to_wire(prompt) for prompt in change.snapshot])
        )
    elif change.published is not None:
        message.published.CopyFrom(version_to_wire(change.published))
    elif change.alias_moved is not None:
        moved = change.alias_moved
        alias = prompts_pb2.Alias(name=moved.alias, targets=targets_to_wire(moved.targets), revision=change.revision)
        message.alias_set.CopyFrom(prompts_pb2.AliasChange(prompt=f"prompts/{moved.prompt}", alias=alias))
    elif change.deleted is not None:
        message.deleted_version = version_name(change.deleted.prompt, change.deleted.version)
    return message


def status_to_wire(status: PromptStatus) -> prompts_pb2.GetPromptStatusResponse:
    """The message of a prompt's status."""
    return prompts_pb2.GetPromptStatusResponse(
        versions=[_version_status(version, stands) for version, stands in status.versions],
        replicas=[_replica(replica) for replica in status.replicas],
        revision=status.revision,
    )


def _version_status(version: Version, stands: Serving) -> prompts_pb2.VersionStatus:
    return prompts_pb2.VersionStatus(
        version=version.record.name,
        aliases=version.prompt.aliases_of(version.record.version),
        num_replicas=stands.num_replicas,
        served=[_serving(replica, loaded) for replica, loaded in stands.served],
        refused=[
            prompts_pb2.ReplicaRefusal(
                replica=replica, reason=refusal.reason, has_base_model=replica in stands.suitable
            )
            for replica, refusal in stands.refused
        ],
        served_by_all=stands.by_all,
    )


def _serving(replica: str, loaded: LoadedVersion) -> prompts_pb2.ReplicaServing:
    seconds = loaded.publish_to_served_seconds
    return prompts_pb2.ReplicaServing(
        replica=replica,
        load_time=write_timestamp(parse_timestamp(loaded.loaded_at)),
        publish_to_served=None if seconds is None else write_duration(seconds),
    )


def _replica(record: ReplicaRecord) -> prompts_pb2.ReplicaStatus:
    return prompts_pb2.ReplicaStatus(
        id=record.id,
        base_model=record.base_model,
        base_model_fingerprint=record.base_model_fingerprint,
        revision=record.revision,
        start_time=write_timestamp(parse_timestamp(record.started_at)),
        update_time=write_timestamp(parse_timestamp(record.updated_at)),
    )
