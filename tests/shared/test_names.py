"""What may be a name, and how references are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidInput
from shared.names import PromptReference, check_alias, check_name, parse_version_name, version_name


@pytest.mark.parametrize("name", ["a", "7", "support-tone", "a--b", "x" * 63, "0-9"])
def test_names(name: str) -> None:
    assert check_name(name, "prompt") == name


BAD_NAMES = [
    "",
    "-a",
    "a-",
    "A",
    "a_b",
    "a.b",
    "a b",
    "../x",
    "a/b",
    "x" * 64,
    "a\n",
    "\na",
    "ä",
    "а",
    "a\0",
    "%2e%2e",
    "a@b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_may_not_be(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name(name, "spec.prompt")
    assert caught.value.violations[0].field == "spec.prompt"


def test_an_overlong_name_is_not_echoed_whole() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name("x" * 100_000, "prompt")
    assert len(caught.value.message) < 300


def test_an_alias_is_not_a_number() -> None:
    assert check_alias("v7", "alias") == "v7"
    with pytest.raises(InvalidInput, match="must not be a number"):
        check_alias("7", "alias")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("support-tone", PromptReference("support-tone", "default", None)),
        ("support-tone@canary", PromptReference("support-tone", "canary", None)),
        ("support-tone@7", PromptReference("support-tone", None, 7)),
        ("7@7", PromptReference("7", None, 7)),
        ("a@999999999", PromptReference("a", None, 999_999_999)),
    ],
)
def test_references(text: str, expected: PromptReference) -> None:
    assert PromptReference.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "@", "a@", "@7", "a@0", "a@07", "a@-1", "a@1.5", "a@b@c", "a@9999999999", "a@B", "a@7\n", "a@٧"]
)
def test_references_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidInput, match="prompt"):
        PromptReference.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_reference_that_reads_back_or_is_refused(text: str) -> None:
    try:
        reference = PromptReference.parse(text)
    except InvalidInput:
        return
    assert (reference.alias is None) != (reference.version is None)
    assert PromptReference.parse(str(reference)) == reference


def test_version_names() -> None:
    assert parse_version_name(version_name("support-tone", 7), "parent") == ("support-tone", 7)
    assert parse_version_name("support-tone@7", "parent") == ("support-tone", 7)


@pytest.mark.parametrize(
    "name",
    [
        "support-tone",
        "support-tone@canary",
        "prompts/a/versions/0",
        "prompts/A/versions/1",
        "prompts/a/versions/1/x",
        "",
    ],
)
def test_names_that_are_not_one_version(name: str) -> None:
    with pytest.raises(InvalidInput, match="parent"):
        parse_version_name(name, "parent")
