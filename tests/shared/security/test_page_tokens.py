"""Page tokens: valid for one list, filter and caller, unreadable, and the same in every replica."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from shared.caller import Caller, Role, Tenant
from shared.errors import InvalidInput
from shared.security.page_tokens import MAX_TOKEN_CHARS, ListScope, PageTokens, new_key

CALLER = Caller("support", frozenset({Role.VIEWER}), ("support-*", "tone"), group=Tenant("acme"))
SCOPE = ListScope("ListTuningJobs", CALLER, {"prompt": "tone", "states": ["QUEUED"], "annotations": {"a": "b"}})
KEY = new_key()


def refused(token: str, scope: ListScope = SCOPE, key: bytes = KEY) -> None:
    with pytest.raises(InvalidInput) as caught:
        PageTokens(key).open(token, scope)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


def test_every_replica_opens_what_one_of_them_sealed() -> None:
    token = PageTokens(KEY).seal("support-tone", SCOPE)
    assert PageTokens(KEY).open(token, SCOPE) == "support-tone"
    assert PageTokens(KEY).seal("support-tone", SCOPE) == token, "the same request gets the same answer"
    reordered = replace(
        SCOPE, filter=dict(reversed(list(SCOPE.filter.items()))), caller=replace(CALLER, prompts=("tone", "support-*"))
    )
    assert PageTokens(KEY).open(token, reordered) == "support-tone"


def test_a_usage_record_with_the_longest_names_has_a_token() -> None:
    names = ["\U00020000" * 200, "\U00020000" * 200, "p" * 63, '\\"' * 166]  # 2,000 bytes
    cursor = json.dumps([1_900_000_000, 999_999_999, *names], ensure_ascii=False)
    assert PageTokens(KEY).open(PageTokens(KEY).seal(cursor, SCOPE), SCOPE) == cursor


def test_the_end_of_a_list_is_an_empty_token() -> None:
    assert PageTokens(KEY).seal("", SCOPE) == ""
    assert PageTokens(KEY).open("", SCOPE) == ""


@pytest.mark.parametrize(
    "other",
    [
        replace(SCOPE, method="ListPrompts"),
        replace(SCOPE, filter={**SCOPE.filter, "prompt": ""}),
        replace(SCOPE, filter={**SCOPE.filter, "states": []}),
        replace(SCOPE, caller=replace(CALLER, name="sales")),
        replace(SCOPE, caller=replace(CALLER, group=Tenant("sales"))),
        replace(SCOPE, caller=replace(CALLER, prompts=("*",))),
    ],
    ids=["method", "filter", "states", "caller", "tenant", "prompts"],
)
def test_a_token_is_for_one_list_filter_and_caller(other: ListScope) -> None:
    refused(PageTokens(KEY).seal("support-tone", SCOPE), other)


def test_a_token_shows_nothing_and_cannot_be_made() -> None:
    token = PageTokens(KEY).seal("support-tone", SCOPE)
    data = base64.urlsafe_b64decode(token + "==")
    assert b"support" not in data
    assert b"tone" not in data
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        refused(base64.urlsafe_b64encode(changed).decode().rstrip("="))
    refused(token, key=new_key())
    for wrong in (
        token[:-1],
        token + "A",
        "x",
        "=",
        "ÿ",
        "../../x",
        "support-tone",
        " " + token,
        "\0",
        "A" * (MAX_TOKEN_CHARS + 1),
    ):
        refused(wrong)
