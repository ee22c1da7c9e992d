"""The parts of access control, each alone: tokens, callers file, buckets, quotas, failures, the table of methods."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import generation_pb2, prompts_pb2, tuning_pb2

from shared.caller import Caller, CallerLimits, Role
from shared.config import ConfigError
from shared.errors import Overloaded, PermissionDenied
from shared.security.bucket import Bucket
from shared.security.callers_file import CallersFile
from shared.security.failures import FREE_FAILURES, MAX_PEERS, FailureLimiter
from shared.security.methods import RULES, prompt_of
from shared.security.quotas import Quotas
from shared.security.tokens import find_hash, hash_token, is_token, new_token


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, *callers: dict[str, Any]) -> Path:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"callers": callers}))
    temporary.replace(path)
    return path


def test_tokens_are_long_and_kept_as_hashes_only() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(is_token(token) for token in tokens)
    token = tokens.pop()
    assert find_hash(hash_token(token), [hash_token(other) for other in [*tokens, token]]) == hash_token(token)
    assert find_hash(hash_token("x"), [hash_token(token)]) is None
    for bad in ("", "short", "a" * 31, "a" * 40 + " ", "a" * 9000, "ä" * 40):
        assert not is_token(bad)


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
    token = new_token()  # somebody put the token itself where its hash belongs
    with pytest.raises(ConfigError) as caught:
        CallersFile(write(tmp_path / "callers.json", {"name": "a", "roles": ["viewer"], "token_sha256": [token]}))
    assert token not in str(caught.value)


def test_a_callers_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.security.callers_file._LOOK_SECONDS", 0.0)
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


def test_a_bucket_fills_and_may_be_overdrawn() -> None:
    clock = Clock()
    bucket = Bucket(2.0, 10.0, clock)
    bucket.take(14.0)
    assert bucket.seconds_until(1.0) == pytest.approx(2.5)
    clock.now += 100
    assert bucket.level == 10.0
    assert bucket.is_full


def test_each_limit_of_a_caller_is_told_with_the_time_to_wait() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    limits = CallerLimits(
        requests_per_second=2.0, tokens_per_second=10.0, concurrent_calls=1, dataset_bytes_per_day=1000.0
    )
    caller, other = (
        Caller("a", frozenset({Role.ADMIN}), limits=limits),
        Caller("b", frozenset({Role.ADMIN}), limits=limits),
    )
    with quotas.taken(caller) as usage:
        with pytest.raises(Overloaded, match="of your calls are running"), quotas.taken(caller):
            pass
        with quotas.taken(other):
            pass
        usage.charge_tokens(150)  # a window of 100 and half as much again
        with pytest.raises(Overloaded, match="bytes of datasets") as caught:
            usage.check_bytes(1001)
        usage.charge_bytes(1000)
        with pytest.raises(Overloaded):
            usage.charge_bytes(1)
    with pytest.raises(Overloaded, match="tokens a second") as caught, quotas.taken(caller):
        pass
    assert caught.value.retry_after_seconds == pytest.approx(5.1)
    clock.now += 6
    for _ in range(2):
        with quotas.taken(caller):
            pass
    with pytest.raises(Overloaded, match="requests a second") as caught, quotas.taken(caller):
        pass
    assert caught.value.retry_after_seconds == pytest.approx(0.5)


def test_new_limits_hold_at_once_and_running_calls_go_on_counting() -> None:
    quotas = Quotas()
    with quotas.taken(Caller("a", frozenset(), limits=CallerLimits(concurrent_calls=5))):
        strict = Caller("a", frozenset(), limits=CallerLimits(concurrent_calls=1))
        with pytest.raises(Overloaded), quotas.taken(strict):
            pass
    with quotas.taken(strict):
        pass


def test_an_address_that_fails_too_often_waits_and_others_do_not() -> None:
    clock = Clock()
    limiter = FailureLimiter(clock)
    for _ in range(FREE_FAILURES):
        limiter.check("10.0.0.1")
        limiter.failed("10.0.0.1")
    with pytest.raises(Overloaded) as caught:
        limiter.check("10.0.0.1")
    limiter.check("10.0.0.2")
    clock.now += caught.value.retry_after_seconds
    limiter.check("10.0.0.1")
    for number in range(MAX_PEERS + 50):
        limiter.failed(str(number))
    assert len(limiter._peers) == MAX_PEERS


def test_every_method_of_every_service_is_in_the_table() -> None:
    methods = {
        f"/{service.full_name}/{method.name}": method
        for file in (tuning_pb2, prompts_pb2, generation_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert methods.keys() == RULES.keys()
    nobody = Caller("nobody", frozenset({Role.ADMIN}), prompts=("none-at-all",))
    for name, method in methods.items():
        rule = RULES[name]
        request, response = method.input_type._concrete_class(), method.output_type._concrete_class()
        assert isinstance(rule.about(request), dict), name
        assert rule.tokens(response) == 0, name
        assert rule.stored_bytes(request) == rule.announced_bytes(request) == 0, name
        if method.name in ("CreateTuningJob", "ImportPromptVersion"):
            with pytest.raises(PermissionDenied):
                rule.check(nobody, _naming_a_prompt(request))
        else:  # what is looked up is the handlers' part: it does not exist for a caller who may not name it
            rule.check(nobody, _naming_a_prompt(request))


def _naming_a_prompt(request: Any) -> Any:
    """The request with somebody else's prompt in whatever field it has for one."""
    for field in ("name", "parent", "prompt"):
        if field in request.DESCRIPTOR.fields_by_name:
            setattr(request, field, "prompts/theirs")
    if "input" in request.DESCRIPTOR.fields_by_name:
        request.input.prompt = "theirs@7"
    if "spec" in request.DESCRIPTOR.fields_by_name:
        request.spec.prompt = "theirs"
    if "header" in request.DESCRIPTOR.fields_by_name and hasattr(request.header, "prompt"):
        request.header.prompt = "theirs"
    return request


@pytest.mark.parametrize(
    "reference", ["theirs", "theirs@canary", "theirs@7", "prompts/theirs", "prompts/theirs/versions/7"]
)
def test_a_reference_in_any_form_names_its_prompt(reference: str) -> None:
    assert prompt_of(reference) == "theirs"


def test_patterns_name_prompts_and_only_everything_is_the_bare_model() -> None:
    support = Caller("a", frozenset(), prompts=("support-*", "faq"))
    assert [support.may_use(name) for name in ("support-tone", "faq", "faqs", "billing", "", "xsupport-a")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert Caller("b", frozenset()).may_use("")
    with pytest.raises(PermissionDenied):
        support.require_prompt("")


def test_a_tuner_trains_and_a_publisher_decides_what_is_served() -> None:
    rule = RULES["/prompttuning.v1.TuningService/CreateTuningJob"]
    request = tuning_pb2.CreateTuningJobRequest(spec=tuning_pb2.TuningSpec(prompt="tone"))
    tuner, both = Caller("t", frozenset({Role.TUNER})), Caller("b", frozenset({Role.TUNER, Role.PUBLISHER}))
    with pytest.raises(PermissionDenied, match="publisher"):
        rule.check(tuner, request)
    rule.check(both, request)
    request.spec.publish.alias = "-"
    rule.check(tuner, request)
    request.spec.prompt = "theirs"
    with pytest.raises(PermissionDenied, match="theirs"):
        rule.check(Caller("t", frozenset({Role.TUNER}), prompts=("tone",)), request)


def test_changes_and_downloads_are_audited() -> None:
    audited = {name.rpartition("/")[2] for name, rule in RULES.items() if rule.audited}
    jobs = {f"{verb}TuningJob" for verb in ("Create", "Cancel", "Pause", "Resume", "Delete")}
    versions = {f"{verb}PromptVersion" for verb in ("Import", "Download", "Delete")}
    downloads = {"DownloadDataset", "GetJobReport"}
    assert audited == {"UploadDataset", "DeleteDataset", *jobs, *versions, "SetPromptAlias", *downloads}
