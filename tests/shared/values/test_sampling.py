"""A sampling parameter is declared once; client, command line and checks follow from it."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
import typer
from prompttuning.v1 import common_pb2
from pydantic import BaseModel, ValidationError

from shared.errors import InvalidInput
from shared.prompt.manifest import SamplingDefaults
from shared.values.guide import Guide
from shared.values.sampling import PARAMETERS, Sampling, SamplingLimits, SamplingParams
from shared.wire.generation import read_sampling, write_sampling
from softprompt.cli.main import app


class Stored(BaseModel):
    defaults: SamplingDefaults = Sampling()


def some(name: str) -> Any:
    """A value within every range, different from the parameter's neutral value."""
    if name in (special := {"guide": Guide(regex="[ab]+"), "logit_bias": {3: -0.7}, "forbidden_token_ids": (4,)}):
        return special[name]
    hint = str(typing.get_type_hints(Sampling)[name])
    return {"t": (3,), "b": True, "i": 7, "f": 0.7}[hint[0]] if "str" not in hint else ("END",)


ALL = Sampling(**{name: some(name) for name in PARAMETERS})


def test_message_value_and_command_line_have_the_same_parameters() -> None:
    command = typer.main.get_command(app).commands["generate"]  # type: ignore[attr-defined]
    assert set(PARAMETERS) == set(common_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
    assert set(PARAMETERS) == {item.name for item in dataclasses.fields(SamplingParams)}
    options = set(PARAMETERS) - {"guide"} | {item.name for item in dataclasses.fields(Guide)}
    assert options <= {parameter.name for parameter in command.params}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_survives_the_wire(name: str) -> None:
    sampling = Sampling(**{name: some(name)})
    message = write_sampling(sampling)
    assert [field.name for field, _ in message.ListFields()] == [name]
    assert read_sampling(message) == sampling


def test_every_parameter_is_checked_and_reaches_the_engine() -> None:
    complete = ALL.check().complete()
    assert all(getattr(complete, name) == some(name) for name in PARAMETERS)
    lists = {"stop_sequences", "stop_token_ids", "allowed_token_ids", "forbidden_token_ids", "logit_bias"}
    numbers = set(PARAMETERS) - lists - {"ignore_eos", "echo", "guide"}
    below: dict[str, Any] = dict.fromkeys(numbers, -1000.0)
    with pytest.raises(InvalidInput) as caught:
        Sampling(**below).check("s")
    assert {violation.field.removeprefix("s.") for violation in caught.value.violations} == numbers


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_is_left_out_is_taken_from_the_defaults(name: str) -> None:
    assert Sampling().or_else(ALL) == ALL
    assert getattr(Sampling(**{name: some(name)}).or_else(Sampling()), name) == some(name)


def test_stored_defaults_keep_their_form() -> None:
    text = (
        '{"temperature":0.7,"top_k":0,"top_p":null,"min_p":null,"repetition_penalty":1.1,"max_new_tokens":5,'
        '"stop":["\\n"]}'
    )
    stored = Stored.model_validate_json(f'{{"defaults":{text}}}')
    assert stored.defaults == Sampling(
        temperature=0.7, top_k=0, repetition_penalty=1.1, max_new_tokens=5, stop_sequences=("\n",)
    )
    assert json.loads(stored.model_dump_json())["defaults"] == json.loads(text)
    assert Stored.model_validate(stored.model_dump()) == stored


@pytest.mark.parametrize(
    "text", ['{"seed": 1}', '{"heat": 1}', '{"temperature": 11}', '{"top_p": NaN}', '{"stop": [""]}']
)
def test_stored_defaults_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="defaults"):
        Stored.model_validate_json(f'{{"defaults": {text}}}')


WRONG = {
    "an id above the vocabulary": (Sampling(forbidden_token_ids=(3, 300)), "s.forbidden_token_ids[1]"),
    "too many ids": (Sampling(allowed_token_ids=tuple(range(11))), "s.allowed_token_ids"),
    "a bias that is not a number": (Sampling(logit_bias={4: float("nan")}), "s.logit_bias[4]"),
    "a bias above 100": (Sampling(logit_bias={4: 100.5}), "s.logit_bias[4]"),
    "a bias of no token": (Sampling(logit_bias={-1: 1.0}), "s.logit_bias[-1]"),
    "nothing left": (Sampling(allowed_token_ids=(1, 2), forbidden_token_ids=(1, 2, 3)), "s.forbidden_token_ids"),
    "too many completions": (Sampling(n=17), "s.n"),
    "no kind of guide": (Sampling(guide=Guide()), "s.guide"),
    "two kinds of guide": (Sampling(guide=Guide(regex="a", choices=("a",))), "s.guide"),
    "an empty choice": (Sampling(guide=Guide(choices=("a", ""))), "s.guide.choices[1]"),
    "too many choices": (Sampling(guide=Guide(choices=("a",) * 257)), "s.guide.choices"),
    "an empty expression": (Sampling(guide=Guide(regex="")), "s.guide.regex"),
    "a huge expression": (Sampling(guide=Guide(regex="a" * 8_193)), "s.guide.regex"),
    "a schema that is no JSON": (Sampling(guide=Guide(json_schema="{")), "s.guide.json_schema"),
    "a schema that is a list": (Sampling(guide=Guide(json_schema="[]")), "s.guide.json_schema"),
    "a schema nested too deeply": (Sampling(guide=Guide(json_schema="[" * 60_000)), "s.guide.json_schema"),
}


@pytest.mark.parametrize(("sampling", "field"), WRONG.values(), ids=WRONG)
def test_what_can_not_be_sampled_is_named(sampling: Sampling, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        sampling.check("s", SamplingLimits(max_listed_token_ids=10), vocab_size=300)
    assert [violation.field for violation in caught.value.violations] == [field]


GUIDES = [
    Guide(choices=("a", "b")),
    Guide(regex="a+"),
    Guide(json_schema={"type": "object", "title": "\u00fc"}),
    Guide(json_schema=False),
    Guide(grammar='start: "a"'),
]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_kind_of_guide_survives_the_wire(guide: Guide) -> None:
    sampling = Sampling(guide=guide).check()
    assert read_sampling(write_sampling(sampling)) == sampling


def test_a_guide_of_two_kinds_is_not_sent() -> None:
    with pytest.raises(InvalidInput, match=r"sampling\.guide"):
        write_sampling(Sampling(guide=Guide(regex="a", grammar='start: "a"')))
