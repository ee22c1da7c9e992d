"""The table of methods: roles, prompts and the audit, for every method of every service."""

from __future__ import annotations

from typing import Any

import pytest
from prompttuning.v1 import generation_pb2, prompts_pb2, tuning_pb2

from shared.caller import Caller, Role
from shared.errors import PermissionDenied
from shared.security.methods import RULES, prompt_of


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
    """The request with another caller's prompt in whatever field it has for one."""
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
    webhooks = {"TestWebhook", "RetryWebhook"}
    assert audited == {"UploadDataset", "DeleteDataset", *jobs, *versions, "SetPromptAlias", *downloads, *webhooks}
