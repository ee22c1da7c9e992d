"""Every field of a tuning spec can be set from the command line."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from prompttuning.v1 import common_pb2

from shared.values.hyperparameters import Hyperparameters
from softprompt.cli.field_options import HYPERPARAMETERS, TEMPLATE
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import DATASET, JOB

ALL = {
    "--prompt": "tone",
    "--base-model": "tiny",
    "--validation": DATASET,
    "--labels": "a,b",
    "--task": "classification",
    "--template": "Q: {input}",
    "--format": "chat",
    "--system": "Be kind.",
    "--template-date": "2030-01-31",
    "--template-argument": "enable_thinking=false",
    "--init": "text",
    "--init-text": "kind words",
    "--virtual-tokens": "5",
    "--kind": "prefix",
    "--reparameterisation": "residual",
    "--learning-rate": "0.5",
    "--schedule": "linear",
    "--warmup-steps": "3",
    "--weight-decay": "0.25",
    "--max-grad-norm": "1.5",
    "--batch-size": "4",
    "--steps": "9",
    "--evaluate-every": "2",
    "--early-stop": "7",
    "--label-smoothing": "0.1",
    "--class-weight": "a=2",
    "--metric": "accuracy",
    "--seed": "11",
    "--alias": "canary",
    "--minimum-metric": "0.5",
    "--priority": "4",
    "--wait-until-served": "5",
    "--max-runtime": "60",
    "--sampling": "temperature=0.5",
    "--annotation": "team=shop",
    "--deadline": "2030-01-31T18:00+00:00",
    "--too-long": "drop",
}
FLAGS = ("--system-override", "--balance-classes", "--search", "--beat-bare-model", "--beat-current")
EXCLUDED = {"num_epochs", "validation_fraction", "source", "sampling_defaults", "distillation"}
"""Fields that exclude another field of `ALL`, and messages that have their own tests (`test_distill_cli.py`)."""


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], services: Services) -> CliRunner:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    return CliRunner(monkeypatch, capsys)


def unset(message: Any, path: str = "") -> list[str]:
    """Fields of a message and of the messages in it that have no value."""
    found = []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name in EXCLUDED:
            continue
        is_own = field.message_type is not None and field.message_type.file.package == "prompttuning.v1"
        if is_own and not field.is_repeated and message.HasField(field.name):
            if field.name not in ("dataset", "validation_dataset"):
                found += unset(value, f"{path}{field.name}.")
        elif not (value if field.is_repeated else message.HasField(field.name) if field.has_presence else value):
            found.append(path + field.name)
    return found


def test_tune_can_set_all_that_the_api_can(cli: CliRunner, services: Services) -> None:
    given = [part for pair in ALL.items() for part in pair]
    assert cli("tune", DATASET, "--no-follow", *given, *FLAGS).code == 0
    spec = services.trainer.specs[0]
    assert unset(spec) == []
    chosen = spec.hyperparameters
    assert dict(chosen.class_weights) == {"a": 2.0}
    assert (chosen.max_grad_norm, chosen.early_stop_patience, chosen.balance_classes) == (1.5, 7, True)
    assert dict(spec.template.arguments) == {"enable_thinking": False}
    assert spec.deadline.ToJsonString() == "2030-01-31T18:00:00Z"
    assert dict(spec.annotations) == {"team": "shop"}


def test_what_is_left_out_stays_unset(cli: CliRunner, services: Services) -> None:
    assert cli("tune", DATASET, "--prompt", "tone", "--no-follow", "--no-search", "--epochs", "1.5").code == 0
    spec = services.trainer.specs[0]
    assert not spec.HasField("template")
    assert not spec.HasField("deadline")
    assert spec.hyperparameters.ListFields() == [
        (field, getattr(spec.hyperparameters, field.name))
        for field in spec.hyperparameters.DESCRIPTOR.fields
        if field.name in ("num_epochs", "search")
    ]


def test_every_field_has_an_option_with_help() -> None:
    assert {*HYPERPARAMETERS, "init"} == {item.name for item in fields(Hyperparameters)}
    assert set(TEMPLATE) == set(common_pb2.Template.DESCRIPTOR.fields_by_name)
    assert all(option.help for option in (*HYPERPARAMETERS.values(), *TEMPLATE.values()))


def test_a_copy_of_a_job_takes_all_hyperparameters(cli: CliRunner, services: Services) -> None:
    assert cli("jobs", "clone", JOB, "--no-follow", "--label-smoothing", "0.1", "--metric", "loss").code == 0
    assert cli("jobs", "continue", JOB, "--no-follow", "--schedule", "constant", "--no-balance-classes").code == 0
    cloned, continued = (spec.hyperparameters for spec in services.trainer.specs)
    assert (cloned.label_smoothing, continued.HasField("balance_classes")) == (0.1, True)
    assert continued.init.source == "prompts/tone/versions/1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--class-weight", "a"), "--class-weight must look like KEY=VALUE"),
        (("--class-weight", "a=much"), "--class-weight: 'much' is not a number"),
        (("--deadline", "tomorrow"), "--deadline must be a time"),
        (("--deadline", "9999-12-31T23:59-23:59"), "--deadline must be a time"),
        (("--annotation", "=x"), "--annotation must look like KEY=VALUE"),
        (("--from", "a", "--init", "random"), "--from can't be combined"),
        (("--metric", "los"), "loss"),
    ],
)
def test_a_wrong_value_names_its_option(cli: CliRunner, arguments: tuple[str, str], said: str) -> None:
    refused = cli("tune", DATASET, "--prompt", "tone", *arguments)
    assert refused.code == 2
    assert said in " ".join(refused.err.replace("│", " ").split())


def test_json_is_printed(cli: CliRunner) -> None:
    assert json.loads(cli("tune", DATASET, "--prompt", "tone", "--no-follow", "--json").out)["name"] == JOB
