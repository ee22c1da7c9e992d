"""Prompts, versions and aliases as their caller sees them, from the store's records."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from shared.caller import Role, current_caller
from shared.names import version_name
from shared.prompt.manifest import Manifest, parse_timestamp
from shared.store.commit import AliasMoved, AliasTarget, Operation, VersionDeleted, VersionPublished
from shared.store.fleet import Serving
from shared.store.index import Alias, PromptRecord, StoreIndex, VersionRecord
from shared.store.replicas import ReplicaRecord
from shared.values import prompts as values
from shared.values.base_model import BaseModelInfo
from shared.values.results import Comparison
from trainer_service.imports import is_import
from trainer_service.jobs.stored_json import from_plain
from trainer_service.jobs.view import shown_source

_MAX_COMPARISONS = 16


def shown_prompt(prompt: PromptRecord) -> values.Prompt:
    """A prompt with its aliases."""
    newest = max(prompt.versions.values(), key=lambda record: record.version, default=None)
    return values.Prompt(
        name=f"prompts/{prompt.name}",
        latest_version=0 if newest is None else newest.version,
        num_versions=len(prompt.versions),
        aliases=tuple(shown_alias(alias) for _, alias in sorted(prompt.aliases.items())),
        update_time=None if newest is None else parse_timestamp(newest.created_at),
    )


def shown_alias(alias: Alias) -> values.Alias:
    """An alias with its targets."""
    return values.Alias(alias.name, _targets(alias.targets), alias.revision)


def shown_version(
    prompt: PromptRecord, record: VersionRecord, manifest: Manifest | None = None
) -> values.PromptVersion:
    """What the index knows of a version, and all of it where the manifest was read."""
    summary = record.summary
    base_model = BaseModelInfo(
        id=summary.base_model,
        fingerprint=summary.base_model_fingerprint,
        tokenizer_digest="",
        architecture="",
        hidden_size=summary.hidden_size,
        vocab_size=0,
        num_layers=0,
        max_positions=0,
    )
    gate, verdict, comparisons = _gate(manifest) if manifest is not None else ("", "", ())
    return values.PromptVersion(
        name=record.name,
        digest=record.digest,
        size_bytes=record.size_bytes,
        create_time=parse_timestamp(record.created_at),
        job="" if is_import(record.job) else record.job,
        base_model=manifest.base_model if manifest is not None else base_model,
        num_virtual_tokens=summary.num_virtual_tokens,
        template=manifest.template if manifest is not None else None,
        labels=manifest.labels if manifest is not None else (),
        metrics={**record.metrics, **(manifest.metrics if manifest is not None else {})},
        sampling_defaults=manifest.sampling_defaults if manifest is not None else None,
        recipe=_recipe(manifest) if manifest is not None else {},
        parent=shown_source(summary.parent),
        revision=record.revision,
        aliases=tuple(prompt.aliases_of(record.version)),
        gate=gate,
        comparisons=comparisons,
        verdict=verdict,
        kind=summary.kind,
    )


def shown_change(
    operation: Operation, time: str, revision: int, store_id: str, index: StoreIndex
) -> values.PromptChange:
    """One operation of a commit of this time. `revision` is the commit's as its caller sees it."""
    match operation:
        case VersionPublished(prompt, version, digest, size_bytes, job, summary):
            record = VersionRecord(prompt, version, digest, size_bytes, job, time, revision, summary)
            return values.Published(revision, store_id, shown_version(index.prompt(prompt), record))
        case AliasMoved(prompt, alias, targets):
            moved = values.Alias(alias, _targets(targets), revision)
            return values.AliasSet(revision, store_id, f"prompts/{prompt}", moved)
        case VersionDeleted(prompt, version):
            return values.Deleted(revision, store_id, version_name(prompt, version))


def shown_replica(record: ReplicaRecord, revision: int) -> values.ReplicaStatus:
    """A live replica. `revision` is the record's as its caller sees it."""
    return values.ReplicaStatus(
        id=record.id,
        base_model=record.base_model,
        base_model_fingerprint=record.base_model_fingerprint,
        revision=revision,
        start_time=parse_timestamp(record.started_at),
        update_time=parse_timestamp(record.updated_at),
    )


def _targets(targets: Sequence[AliasTarget]) -> tuple[values.AliasTarget, ...]:
    return tuple(values.AliasTarget(target.version, target.weight) for target in targets)


def _gate(manifest: Manifest) -> tuple[str, str, tuple[Comparison, ...]]:
    """Decision, verdict and comparisons. Versions of earlier releases have the decision alone; what another program
    wrote there in another form is left out.
    """
    gate = manifest.gate
    if not isinstance(gate, dict):
        return (gate if isinstance(gate, str) else ""), "", ()
    comparisons = list[Comparison]()
    for one in (listed if isinstance(listed := gate.get("comparisons"), list) else [])[:_MAX_COMPARISONS]:
        with contextlib.suppress(ValidationError):
            comparisons.append(from_plain(Comparison, one))
    return str(gate.get("decision", "")), str(gate.get("verdict", "")), tuple(comparisons)


def _recipe(manifest: Manifest) -> Any:
    """As the manifest has it, but for the name of a prompt that the caller may not name, and for who trained it, which
    publishers alone see.
    """
    recipe: Any = copy.deepcopy(dict(manifest.recipe))
    if isinstance(provenance := recipe.get("provenance"), dict) and not current_caller().has_role(Role.PUBLISHER):
        provenance.pop("caller", None)
    init = (recipe.get("hyperparameters") or {}).get("init") or {}
    if isinstance(init.get("source_version"), str):
        init["source_version"] = shown_source(init["source_version"])
    return recipe


def shown_serving(prompt: PromptRecord, record: VersionRecord, serving: Serving) -> values.VersionStatus:
    """Where a version is served."""
    return values.VersionStatus(
        version=record.name,
        aliases=tuple(prompt.aliases_of(record.version)),
        num_replicas=serving.num_replicas,
        served=tuple(
            values.ReplicaServing(replica, parse_timestamp(loaded.loaded_at), loaded.publish_to_served_seconds)
            for replica, loaded in serving.served
        ),
        refused=tuple(
            values.ReplicaRefusal(replica, refusal.reason, has_base_model=replica in serving.suitable)
            for replica, refusal in serving.refused
        ),
        served_by_all=serving.by_all,
        kind=record.summary.kind,
    )
