"""The callers file: recognition, errors that reveal no token, and reloading."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.config import ConfigError
from shared.security.callers_file import CallersFile
from shared.security.tokens import new_token


def write(path: Path, *callers: dict[str, Any]) -> Path:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"callers": callers}))
    temporary.replace(path)
    return path


def test_a_callers_file_recognises_by_token_certificate_subject_and_group(tmp_path: Path) -> None:
    shop = {
        "name": "shop",
        "roles": ["generator"],
        "prompts": ["support-*"],
        "token_sha256": ["a" * 64],
        "certificates": ["spiffe://x/shop"],
    }
    team = {"name": "team", "roles": ["viewer"], "groups": ["shop-team"], "limits": {"concurrent_calls": 3}}
    boss = {"name": "boss", "roles": ["admin"], "subjects": ["boss@shop"]}
    directory = CallersFile(write(tmp_path / "callers.json", shop, team, boss)).directory
    found = directory.by_token("a" * 64)
    assert found is not None
    assert (found.name, found.prompts, found.identified_by) == ("shop", ("support-*",), "token")
    assert directory.by_certificate(["other", "spiffe://x/shop"]) is not None
    one, two = directory.by_claims("ann", ["shop-team"]), directory.by_claims("boss@shop", ["shop-team"])
    assert one is not None
    assert two is not None
    assert (one.name, one.limits.concurrent_calls, two.name) == ("team:ann", 3, "boss")
    assert directory.by_token("b" * 64) is directory.by_claims("nobody", []) is None


@pytest.mark.parametrize(
    "callers",
    [
        [{"name": "a", "roles": ["king"]}],
        [{"name": "a", "roles": []}],
        [{"name": "a", "roles": ["viewer"], "token_sha256": ["not-a-hash"]}],
        [{"name": "a", "roles": ["viewer"], "colour": "red"}],
        [{"name": "a", "roles": ["viewer"], "limits": {"requests_per_second": 0}}],
        [{"name": "a", "roles": ["viewer"]}, {"name": "a", "roles": ["viewer"]}],
        [{"name": "a", "roles": ["viewer"], "subjects": ["s"]}, {"name": "b", "roles": ["viewer"], "subjects": ["s"]}],
    ],
)
def test_a_callers_file_that_is_wrong_stops_the_start(tmp_path: Path, callers: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError):
        CallersFile(write(tmp_path / "callers.json", *callers))


def test_what_a_wrong_callers_file_holds_is_not_repeated(tmp_path: Path) -> None:
    token = new_token()  # the token itself where its hash belongs
    with pytest.raises(ConfigError) as caught:
        CallersFile(write(tmp_path / "callers.json", {"name": "a", "roles": ["viewer"], "token_sha256": [token]}))
    assert token not in str(caught.value)


def test_a_callers_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.security.json_file._LOOK_SECONDS", 0.0)
    path = write(tmp_path / "callers.json", {"name": "a", "roles": ["viewer"], "token_sha256": ["a" * 64]})
    file = CallersFile(path)
    write(path, {"name": "b", "roles": ["viewer"], "token_sha256": ["b" * 64]})
    assert file.directory.by_token("a" * 64) is None
    assert file.directory.by_token("b" * 64) is not None
    path.write_text("{")
    assert file.directory.by_token("b" * 64) is not None
    os.unlink(path)
    assert file.directory.by_token("b" * 64) is not None
    write(path)
    assert file.directory.by_token("b" * 64) is None
