"""Tenants in the callers file: the tenant of each caller, and the limits that apply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.caller import Caller, CallerLimits, Role, Tenant
from shared.config import ConfigError
from shared.errors import Overloaded
from shared.security.callers_file import CallersFile, Directory
from shared.security.quotas import Quotas


def directory(tmp_path: Path, **content: Any) -> Directory:
    file = tmp_path / "callers.json"
    file.write_text(json.dumps(content))
    return CallersFile(file).directory


def entry(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "roles": ["tuner"], "subjects": [name], **fields}


def test_callers_of_one_tenant_share_it(tmp_path: Path) -> None:
    tenants = [
        {"name": "acme", "weight": 2, "max_priority": 10, "limits": {"active_jobs": 5}, "dataset_roots": ["/data/acme"]}
    ]
    found = directory(tmp_path, tenants=tenants, callers=[entry("shop", tenant="acme"), entry("web", tenant="acme")])
    wanted = Tenant("acme", 2.0, 10, CallerLimits(active_jobs=5), ("/data/acme",))
    assert [found.by_claims(name, ()).tenant for name in ("shop", "web")] == [wanted, wanted]
    assert found.tenants == {"acme": wanted}


def test_a_caller_without_a_tenant_is_one_by_itself(tmp_path: Path) -> None:
    found = directory(tmp_path, callers=[entry("shop"), entry("web")])
    assert [found.by_claims(name, ()).tenant.name for name in ("shop", "web")] == ["shop", "web"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"callers": [entry("shop", tenant="acme")]}, "'acme'"),
        ({"tenants": [{"name": "a"}, {"name": "a"}], "callers": []}, "two tenants"),
        ({"tenants": [{"name": "shop"}], "callers": [entry("shop")]}, "shop names no tenant"),
        ({"tenants": [{"name": "a", "weight": 0}], "callers": []}, "weight"),
        ({"tenants": [{"name": "a", "max_priority": 101}], "callers": []}, "max_priority"),
        ({"tenants": [{"name": "a", "dataset_roots": ["relative"]}], "callers": []}, "dataset_roots"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, content: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        directory(tmp_path, **content)


def test_members_of_a_group_share_its_limits(tmp_path: Path) -> None:
    found = directory(
        tmp_path, callers=[{"name": "team", "roles": ["tuner"], "groups": ["g"], "limits": {"concurrent_calls": 2}}]
    )
    ann, bob, eve = (found.by_claims(subject, ["g"]) for subject in ("ann", "bob", "eve"))
    assert ann is not None
    assert bob is not None
    assert eve is not None
    assert ann.name != bob.name
    quotas = Quotas()
    with quotas.taken(ann), quotas.taken(bob), pytest.raises(Overloaded, match="your tenant"), quotas.taken(eve):
        pass
    with quotas.taken(ann), quotas.taken(ann), pytest.raises(Overloaded, match="of your calls"), quotas.taken(ann):
        pass
    with quotas.taken(ann), quotas.taken(eve):  # all that was counted was given back, by those that were refused, too
        pass


def test_bytes_and_tokens_are_charged_to_caller_and_tenant() -> None:
    tenant = Tenant("acme", limits=CallerLimits(dataset_bytes_per_day=100, tokens_per_second=1))
    shop, web = (Caller(name, frozenset({Role.TUNER}), group=tenant) for name in ("shop", "web"))
    quotas = Quotas(clock=lambda: 0.0)
    with quotas.taken(shop) as charges:
        charges.charge_bytes(60)
        charges.charge_tokens(50)
    with pytest.raises(Overloaded, match="your tenant may use 1 tokens"), quotas.taken(web):
        pass
    with pytest.raises(Overloaded, match="your tenant may upload 100 bytes"):
        charges.charge_bytes(60)
