"""Promotion: brings a version from one trainer service to another, for example from staging to production.

The target's trainer publishes the same bytes: prefix, manifest and golden records, so the digest stays. It checks the
publisher's role, assigns its own number and audits the call. The alias moves last, and only from where it stood when
the difference was shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from shared.errors import NotFound
from shared.names import DEFAULT_ALIAS, PromptReference
from shared.values.prompts import Alias, Prompt
from softprompt.client.sync_client import Client
from softprompt.types.prompts import PromptVersion

_PROVENANCE = "provenance"


@dataclass(frozen=True)
class Difference:
    """One fact in which the promoted version differs from the one that the target's alias names."""

    what: str
    served: Any
    """None: the target serves nothing yet, or its version lacks this."""
    promoted: Any


@dataclass(frozen=True)
class Plan:
    """What a promotion will do."""

    version: PromptVersion
    """In the source."""
    blob: bytes
    prompt: str
    alias: str
    """Empty: no alias moves."""
    served: PromptVersion | None
    """The version that the target's alias names; the one with most of the traffic if the alias divides it."""
    current: Alias | None
    """The target's alias (without one, its default alias); None: it does not exist."""
    present: PromptVersion | None
    """The same bytes, if the target has them already."""
    latest: int
    """The newest number of the prompt in the target; 0: the target lacks the prompt."""
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Promoted:
    """The result of a promotion."""

    version: PromptVersion
    """In the target."""
    published: bool
    """False: the target had these bytes already."""
    alias: Alias | None


def plan_promotion(source: Client, target: Client, reference: str, alias: str = DEFAULT_ALIAS) -> Plan:
    """Reads `reference` and what the target's `alias` names; changes nothing. Raises NotFound, DamagedBlob."""
    version, blob = source.download_version(reference)
    prompt = PromptReference.parse(reference, "reference").prompt
    there = _find(target, prompt)
    versions = target.list_versions(prompt) if there is not None else []
    present = next((one for one in versions if one.digest == version.digest), None)
    named = next((one for one in there.aliases if one.name == (alias or DEFAULT_ALIAS)), None) if there else None
    served = None
    if named is not None:
        heaviest = max(named.targets, key=lambda one: one.weight)
        served = target.get_version(f"{prompt}@{heaviest.version}")
    differences = tuple(_differences(served, version))
    latest = there.latest_version if there else 0
    return Plan(version, blob, prompt, alias, served, named, present, latest, differences)


def promote(target: Client, plan: Plan) -> Promoted:
    """Publishes the version and moves the alias; repeated, it publishes nothing again. Raises PermissionDenied without
    the role publisher, PreconditionFailed without the base model, Conflict, after publishing, if the alias has moved
    since the plan.
    """
    version = plan.present or _publish(target, plan)
    alias = None
    if plan.alias:
        number = int(version.name.rpartition("/")[2])
        revision = plan.current.revision if plan.current else 0  # 0: it must not exist
        alias = target.set_alias(plan.prompt, plan.alias, number, expected_revision=revision)
    return Promoted(version, plan.present is None, alias)


def _publish(target: Client, plan: Plan) -> PromptVersion:
    with tempfile.TemporaryDirectory(prefix="softprompt-promotion-") as folder:
        path = Path(folder) / "version.safetensors"
        path.write_bytes(plan.blob)
        # Two promotions at once publish one version. After a deletion, the newest number makes another id.
        request_id = f"promotion-{plan.version.digest.removeprefix('sha256:')}-{plan.latest}"
        return target.import_version(path, plan.prompt, alias="-", request_id=request_id)


def _find(target: Client, prompt: str) -> Prompt | None:
    try:
        return target.get_prompt(prompt)
    except NotFound:
        return None


def _differences(served: PromptVersion | None, promoted: PromptVersion) -> Iterator[Difference]:
    old, new = ({} if served is None else _facts(served)), _facts(promoted)
    for what in sorted({*old, *new}, key=lambda what: (_order(what), what)):
        if old.get(what) != new.get(what):
            yield Difference(what, old.get(what), new.get(what))


_FIRST = ("kind", "num_virtual_tokens", "base_model", "metrics", "provenance", "template", "labels", "sampling")


def _order(what: str) -> int:
    return next((place for place, name in enumerate(_FIRST) if what.split(".")[0] == name), len(_FIRST))


def _facts(version: PromptVersion) -> dict[str, Any]:
    """What a promotion compares, by name; the parts of a structure are facts of their own."""
    model = version.base_model
    recipe = dict(version.recipe)
    facts = {
        "kind": version.kind,
        "num_virtual_tokens": version.num_virtual_tokens,
        "base_model": {} if model is None else {"id": model.id, "fingerprint": model.fingerprint},
        "metrics": version.metrics,
        "template": version.template,
        "labels": list(version.labels),
        "sampling": version.sampling_defaults,
        _PROVENANCE: recipe.pop(_PROVENANCE, None),
        "recipe": recipe,
    }
    return dict(_flat("", facts))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), part)
    elif isinstance(value, float) and value.is_integer():
        yield name, int(value)  # the recipe's numbers come without their kind
    elif value not in (None, "", [], ()):
        yield name, list(value) if isinstance(value, tuple) else value
