"""Every sampling parameter of the protocol can be set from the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import typer

from shared.values.guide import Guide
from shared.values.sampling import Sampling
from shared.wire.generation import read_sampling
from softprompt.cli.failures import EXIT_INVALID
from softprompt.cli.main import app
from softprompt.cli.sampling import parse_sampling
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services

GIVEN = {
    "temperature": "0.5",
    "top_k": "3",
    "top_p": "0.5",
    "min_p": "0.25",
    "repetition_penalty": "1.5",
    "presence_penalty": "-0.5",
    "frequency_penalty": "0.25",
    "seed": "7",
    "stop_sequences": "END",
    "stop_token_ids": "11",
    "max_new_tokens": "9",
    "min_new_tokens": "2",
    "ignore_eos": "true",
    "num_logprobs": "4",
    "logit_bias": "12=-2.5",
    "allowed_token_ids": "13",
    "forbidden_token_ids": "14",
    "n": "2",
    "num_input_logprobs": "3",
    "echo": "true",
}
OF_A_REQUEST = {"logit_bias"}
"""What `tune --sampling` does not even read."""
WANTED = Sampling(
    0.5, 3, 0.5, 0.25, 1.5, -0.5, 0.25, 7, ("END",), (11,), 9, 2, True, 4, None, {12: -2.5}, (13,), (14,), 2, 3, True
)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], services: Services) -> CliRunner:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", services.inference_endpoint)
    return CliRunner(monkeypatch, capsys)


def test_generate_has_an_option_for_each(cli: CliRunner, services: Services) -> None:
    generate = typer.main.get_command(app).commands["generate"]  # type: ignore[attr-defined]
    options = {parameter.name: parameter.opts[0] for parameter in generate.params}
    parameters = {item.name for item in fields(Sampling)} - {"guide"}
    assert parameters | {item.name for item in fields(Guide)} <= set(options)
    given = [
        part
        for name, value in GIVEN.items()
        for part in ((options[name],) if value == "true" else (options[name], value))
    ]
    assert cli("generate", "hi", *given).code == 0
    sent = services.inference.requests[0].sampling
    for name in parameters:
        value = getattr(sent, name)
        assert (tuple(value) if isinstance(getattr(WANTED, name), tuple) else value) == getattr(WANTED, name)
        assert value, f"{name} was not sent"


def test_generate_has_an_option_for_each_kind_of_guide(cli: CliRunner, services: Services, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "object"}')
    grammar.write_text('start: "a"')
    given = {
        ("--choice", "yes", "--choice", "no"): Guide(choices=("yes", "no")),
        ("--regex", "a+"): Guide(regex="a+"),
        ("--json-schema", str(schema)): Guide(json_schema='{"type": "object"}'),
        ("--grammar", str(grammar)): Guide(grammar='start: "a"'),
    }
    for options in given:
        assert cli("generate", "hi", *options).code == 0
    sent = [read_sampling(request.sampling).guide for request in services.inference.requests]
    assert sent == list(given.values())
    assert cli("generate", "hi", "--json-schema", str(tmp_path / "missing")).code == EXIT_INVALID
    assert cli("generate", "hi", "--regex", "a", "--choice", "b").code == EXIT_INVALID
    assert "ID=BIAS" in cli("generate", "hi", "--logit-bias", "3").err


def test_tune_sets_the_defaults_of_the_prompt(cli: CliRunner, services: Services, tmp_path: Path) -> None:
    examples = tmp_path / "train.jsonl"
    examples.write_text('{"input": "a", "output": "b"}\n')
    given = [
        part for name, value in GIVEN.items() if name not in OF_A_REQUEST for part in ("--sampling", f"{name}={value}")
    ]
    assert cli("tune", str(examples), "--prompt", "tone", "--no-follow", *given).code == 0
    sent = services.trainer.specs[0].sampling_defaults
    assert (sent.temperature, sent.ignore_eos, list(sent.stop_token_ids)) == (0.5, True, [11])


def test_names_and_values_are_checked() -> None:
    assert parse_sampling([]) is None
    assert parse_sampling(["stop_token_ids=1,2", "ignore_eos=false"]) == Sampling(
        stop_token_ids=(1, 2), ignore_eos=False
    )
    for pair in ("temperature", "heat=1", "top_k=many", "ignore_eos=yes", "logit_bias=3"):
        with pytest.raises(typer.BadParameter, match=pair):
            parse_sampling([pair])
