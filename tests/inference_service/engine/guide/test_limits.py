"""Guides that are refused, too complex, or slow, and requests that end while their masks are late."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from inference_service.engine.core.request import Delta, FinishReason, GenerationRequest
from inference_service.engine.engine import Engine
from inference_service.engine.guide.compiler import GuideCompiler
from inference_service.engine.guide.matcher import CompiledGuide
from shared.errors import InvalidInput
from shared.values.guide import Guide
from tests.inference_service.engine.builders import drain, small_config, tiny_base
from tests.inference_service.engine.guide.guided import IDS, SUMS, answer, params

BAD: dict[str, tuple[Guide, str]] = {
    "an expression with a look-ahead": (Guide(regex="(?=a)b"), "regex"),
    "an unclosed group": (Guide(regex="(a"), "regex"),
    "a keyword without support": (Guide(json_schema={"not": {"type": "string"}}), "json_schema"),
    "the same, leniently": (Guide(json_schema={"not": {}, "x-guidance": {"lenient": True}}), "json_schema"),
    "options of the wrong kind": (Guide(json_schema={"x-guidance": 3}), "json_schema"),
    "an unknown format": (Guide(json_schema={"type": "string", "format": "colour"}), "json_schema"),
    "an unknown type": (Guide(json_schema={"type": "colour"}), "json_schema"),
    "no value at all": (Guide(json_schema=False), "json_schema"),
    "an empty range": (Guide(json_schema={"type": "integer", "minimum": 5, "maximum": 3}), "json_schema"),
    "a reference to itself": (Guide(json_schema={"$ref": "#"}), "json_schema"),
    "a reference to nothing": (Guide(json_schema={"$ref": "#/$defs/x"}), "json_schema"),
    "alternatives that overlap": (
        Guide(json_schema={"oneOf": [{"type": "number"}, {"type": "integer"}]}),
        "json_schema",
    ),
    "a reference elsewhere": (Guide(json_schema={"$ref": "http://127.0.0.1:1/schema"}), "json_schema"),
    "a schema bomb": (
        Guide(
            json_schema={
                "allOf": [
                    {"anyOf": [{"properties": {f"a{i}": {}, f"b{j}": {"type": "integer"}}} for j in range(6)]}
                    for i in range(12)
                ]
            }
        ),
        "json_schema",
    ),
    "a rule that is missing": (Guide(grammar="start: other"), "grammar"),
    "a rule that never ends": (Guide(grammar="start: start"), "grammar"),
    "no rules": (Guide(grammar="hello"), "grammar"),
    "a token that is missing": (Guide(grammar="start: <|nothing|>"), "grammar"),
}


@pytest.mark.parametrize("lead", ["", " "])
@pytest.mark.parametrize(("guide", "kind"), BAD.values(), ids=BAD)
def test_a_guide_that_can_not_be_used_is_refused(compiler: GuideCompiler, guide: Guide, kind: str, lead: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compiler.compile(guide, lead)
    (violation,) = caught.value.violations
    assert violation.field == f"sampling.guide.{kind}"
    assert 5 < len(violation.description) < 500
    for word in ("Unimplemented", "Unsatisfiable", "NoExtension", "retriev", "registry", "parse error", "coerce"):
        assert word not in violation.description, "a word of the library's"


BOMBS = {
    "repetitions": Guide(regex="(a|b)*" * 1300),
    "nested repetitions": Guide(regex="(((a{1,100}){1,100}){1,100}){1,100}"),
    "optional parts": Guide(regex="(a?){5000}a{5000}"),
    "a grammar": Guide(grammar="start: " + '("a"|"b")* ' * 1200),
    "an ambiguous grammar": Guide(grammar='start: s\ns: s s | "a" | /[a-z]/'),
    "a large choice": Guide(choices=("x" * 16_000,)),
    "nested arrays": Guide(json_schema='{"items": ' * 900 + "{}" + "}" * 900),
}


@pytest.mark.parametrize("guide", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_or_served_within_the_limits(engine: Engine, compiler: GuideCompiler, guide: Guide) -> None:
    try:
        found = answer(engine, compiler, guide, max_new_tokens=20)
    except InvalidInput as error:
        assert error.violations[0].field.startswith("sampling.guide.")  # noqa: PT017 - both outcomes are right
    else:
        assert found.finish_reason in (FinishReason.EOS, FinishReason.LENGTH, FinishReason.ERROR)


COMPLEX = Guide(regex="((?s:.*)a(?s:.{20})|(?s:.*)b(?s:.{30})|(?s:.*)[ec](?s:.{40}))")


def test_a_guide_that_becomes_too_complex_ends_its_own_answer_only(engine: Engine, compiler: GuideCompiler) -> None:
    engine.submit(GenerationRequest("bad", IDS, params(COMPLEX), guide=compiler.compile(COMPLEX)))
    engine.submit(GenerationRequest("good", IDS, params(None, ignore_eos=True, max_new_tokens=60)))
    found = drain(engine)
    assert found["good"].finish_reason is FinishReason.LENGTH
    assert found["bad"].finish_reason in (FinishReason.ERROR, FinishReason.LENGTH)
    if found["bad"].finish_reason is FinishReason.ERROR:
        assert "complex" in found["bad"].error


def test_a_slow_guide_delays_only_its_own_answer(compiler: GuideCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(max_length=256))
    expected = answer(engine, compiler, SUMS, max_new_tokens=20)
    go_on, next_mask = threading.Event(), CompiledGuide.next_mask

    def slowly(self: CompiledGuide, matcher: Any, token_id: int) -> Any:
        go_on.wait(60)
        return next_mask(self, matcher, token_id)

    monkeypatch.setattr(CompiledGuide, "next_mask", slowly)
    request = GenerationRequest("slow", IDS, params(SUMS, max_new_tokens=20), guide=compiler.compile(SUMS))
    engine.submit(request)
    engine.submit(GenerationRequest("free", IDS, params(None, ignore_eos=True, max_new_tokens=40)))
    deltas: dict[str, list[Delta]] = {"slow": [], "free": []}
    while not (deltas["free"] and deltas["free"][-1].finish_reason):
        for output in engine.step():
            deltas[output.request_id].append(output.delta)
    assert len(deltas["slow"]) == 1, "its first mask was there, the second is late"
    assert not engine.step(), "nothing can be computed"
    go_on.set()
    rest = drain(engine)["slow"]
    assert deltas["slow"][0].token_ids + rest.token_ids == expected.token_ids


def test_cancelling_a_request_whose_mask_is_late_frees_it(
    compiler: GuideCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(max_length=256))
    go_on = threading.Event()
    monkeypatch.setattr(CompiledGuide, "next_mask", lambda self, matcher, token_id: go_on.wait(60) and self.mask)
    engine.submit(GenerationRequest("slow", IDS, params(SUMS), guide=compiler.compile(SUMS)))
    while not engine.step():
        pass
    engine.step()
    engine.cancel("slow")
    go_on.set()
    assert not engine.has_work
    engine.check_integrity()
