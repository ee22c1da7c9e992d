"""`softprompt doctor`, `init`, `models list`, and suggestions for misspelt names."""

from __future__ import annotations

import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import generation_pb2, prompts_pb2, tuning_pb2

from shared.errors import NotFound
from shared.model import fingerprint
from softprompt.cli.doctor import gateway_finding
from softprompt.cli.up import after_start
from softprompt.local import machine_checks
from softprompt.model_catalogue import models_dir
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import succeeded_job

ID = "01m8jtk34bqn8n6qwc8jx78ehs"


@pytest.fixture
def here(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Services:
    """Both services, and a model of the catalogue in its own directory."""
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", services.inference_endpoint)
    monkeypatch.setenv("SOFTPROMPT_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("softprompt.cli.doctor._SERVICE_SECONDS", 600.0)  # for a busy machine
    model = tmp_path / "models/smollm2-135m-instruct"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "weights.safetensors").write_bytes(b"123")
    monkeypatch.chdir(tmp_path)
    return services


def findings(cli: CliRunner, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = cli("doctor", "--json", "--gateway", "http://127.0.0.1:9/v1", *arguments)
    return done.code, {item["subject"]: item for item in done.json}


def test_a_sound_installation_has_no_problem(cli: CliRunner, here: Services) -> None:
    code, found = findings(cli)
    assert [item for item in found.values() if item["is_problem"]] == []
    assert code == 0
    assert {"softprompt", "packages", "memory", "disk (data)", "kernels", "model", "store", "trainer"} <= set(found)
    assert found["base model"]["text"] == "tiny, the same for trainer and replica"
    assert "softprompt 0.1.0, answered in" in found["inference"]["text"]
    assert found["gateway"]["text"] == "none at http://127.0.0.1:9"
    assert "softprompt gateway starts it" in found["gateway"]["fix"]
    shown = cli("doctor").out.splitlines()
    assert len(shown) == len(found)


@pytest.mark.usefixtures("quick_retries")
def test_services_that_do_not_answer_are_problems_with_a_way_out(
    cli: CliRunner, here: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("SOFTPROMPT_TRAINER", f"127.0.0.1:{other.getsockname()[1]}")
        monkeypatch.setenv("SOFTPROMPT_INFERENCE", "127.0.0.1:9")
        monkeypatch.setattr("softprompt.cli.doctor._SERVICE_SECONDS", 0.5)
        code, found = findings(cli)
        assert code == 1
        assert found["trainer"]["is_problem"]
        taken = found[f"port {other.getsockname()[1]}"]
        assert taken["is_problem"]
        assert "--trainer-port" in taken["fix"]
        assert not found["port 9"]["is_problem"]
        monkeypatch.setattr("softprompt.cli.doctor._SERVICE_SECONDS", 600.0)
        monkeypatch.setenv("SOFTPROMPT_TRAINER", "127.0.0.1:9")
        assert "softprompt up" in findings(cli)[1]["inference"]["fix"]
        lines = cli("doctor").out.splitlines()
        assert any(line.split("  (")[0].endswith("reached at 127.0.0.1:9: Connection refused") for line in lines)
        assert any(re.search(r"inference .*\(to fix it: softprompt up", line) for line in lines)


def test_swapped_addresses_blame_no_port(cli: CliRunner, here: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", here.inference_endpoint)
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", here.trainer_endpoint)
    _, found = findings(cli)
    assert found["trainer"]["text"].endswith("are the addresses of trainer and inference swapped?")
    assert not [subject for subject in found if subject.startswith("port")]


@pytest.mark.parametrize("url", ["http://nowhere.invalid", "127.0.0.1:8000", "ftp://127.0.0.1"])
def test_an_address_of_no_gateway_is_a_problem(url: str) -> None:
    assert gateway_finding(url).is_problem


def test_a_program_that_is_no_gateway_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        answering = threading.Thread(target=lambda: other.accept()[0].close(), daemon=True)
        answering.start()
        found = gateway_finding(f"http://127.0.0.1:{other.getsockname()[1]}")
        answering.join()
    assert found.is_problem
    assert "--gateway-port" in found.fix


def test_other_models_versions_and_clocks_are_named(cli: CliRunner, here: Services) -> None:
    here.trainer.info = tuning_pb2.GetServiceInfoResponse(software_version="9.9.9")
    here.trainer.info.unavailable_base_models.add(id="big", reason="its weights are missing")
    here.trainer.info.current_time.seconds = 1_000_000
    here.inference.info = generation_pb2.GetModelInfoResponse(software_version="0.1.0")
    here.inference.info.base_model.id, here.inference.info.base_model.fingerprint = "tiny", "sha256:1"
    here.inference.info.current_time.seconds = 4_000_000_000
    done = cli("doctor")
    assert done.code == 1
    assert "pip install softprompt==9.9.9, or upgrade the service" in done.out
    assert "the trainer's is -" in done.out
    assert "the inference's is +" in done.out
    assert "synchronise both clocks" in done.out
    assert "the replica has tiny, the trainer none" in done.out
    assert "the trainer can't use big: its weights are missing" in done.out


def test_an_impossible_setting_is_named_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(machine_checks.settings()) == []
    monkeypatch.setenv("SOFTPROMPT_TRAINER_LOG_LEVEL", "INFO")
    assert list(machine_checks.settings()) == [], "`softprompt up` sets what else the trainer needs"
    for variable, value in {
        "SOFTPROMPT_GATEWAY_PORT": "99999",
        "SOFTPROMPT_GATEWAY_LOG_LEVEL": "debug",
        "SOFTPROMPT_ROUTER_METRICS_PORT": "x",
        "SOFTPROMPT_ROUTER_PROT": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    found = list(machine_checks.settings())
    assert all(item.is_problem and item.fix for item in found)
    assert {item.text for item in found} == {
        "SOFTPROMPT_GATEWAY_PORT='99999': must be at most 65535",
        "SOFTPROMPT_GATEWAY_LOG_LEVEL='debug': must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'; do you mean 'DEBUG'?",
        "SOFTPROMPT_ROUTER_METRICS_PORT='x': a whole number is expected",
        "SOFTPROMPT_ROUTER_PROT is not a setting; do you mean 'SOFTPROMPT_ROUTER_PORT'?",
    }


def test_what_this_machine_lacks_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks, "_available_bytes", lambda: 1 << 20)
    monkeypatch.setattr(machine_checks, "MIN_DISK_BYTES", 1 << 60)
    monkeypatch.setattr("shared.kernels.build.compiler_version", lambda: None)
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text("{}")
    wrong = [
        *machine_checks.memory(),
        *list(machine_checks.disk(tmp_path / "new/data", tmp_path))[:3],
        *machine_checks.model("half", tmp_path),
        *machine_checks.store(str(file)),
        *machine_checks.store(str(file / "below")),
        *machine_checks.store("ftp://somewhere"),
    ]
    assert all(item.is_problem and item.fix for item in wrong), wrong
    (missing,) = machine_checks.model("none", tmp_path)
    assert missing.fix.startswith("softprompt models pull none")
    (new,) = machine_checks.store(f"file://{tmp_path}/new")
    assert not new.is_problem
    assert all("\n" not in item.text + item.fix for item in wrong)


def test_models_of_every_place_are_listed(cli: CliRunner, here: Services) -> None:
    done = cli("models", "list", "--json")
    assert done.code == 0
    assert {(item["name"], item["where"]) for item in done.json} == {
        ("smollm2-135m-instruct", "catalogue"),
        ("smollm2-135m-instruct", "this machine"),
        ("tiny", "trainer"),
        ("tiny", "inference"),
    }
    assert "models pull smollm2-135m-instruct" in cli("models", "list").out


def test_trainer_replicas_and_this_machine_are_compared_by_their_files(cli: CliRunner, here: Services) -> None:
    """`tiny` is the same for all; `small` has other files at the replicas; nothing serves `large`."""
    prints = {name: f"sha256:{name * 8}" for name in ("tiny", "small", "large", "other")}
    here.inference.info.base_model.fingerprint = prints["tiny"]
    here.trainer.info.ClearField("base_models")
    for name in ("tiny", "small", "large"):
        here.trainer.info.base_models.add(id=name, fingerprint=prints[name])
    for id, name, files in (("a", "tiny", "tiny"), ("b", "tiny", "tiny"), ("c", "small", "other")):
        here.trainer.replicas.append(
            prompts_pb2.ReplicaStatus(id=id, base_model=name, base_model_fingerprint=prints[files])
        )
    directory = models_dir() / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "weights.safetensors").write_bytes(b"123")
    mine = fingerprint.ship(directory).fingerprint
    listed = {(item["name"], item["where"]): item for item in cli("models", "list", "--json").json}
    assert {key: item["agrees"] for key, item in listed.items() if item["agrees"] is not None} == {
        ("tiny", "trainer"): True,
        ("small", "trainer"): False,
        ("large", "trainer"): False,
        ("tiny", "inference"): True,
        ("small", "inference"): False,
        ("tiny", "this machine"): False,
    }
    assert listed["tiny", "inference"]["detail"] == "2 replicas: a, b"
    assert listed["tiny", "this machine"]["fingerprint"] == mine
    shown = cli("models", "list")
    assert "small: trainer and replicas have different files" in shown.err
    assert [line.split()[0] for line in shown.out.splitlines() if " no " in line] == ["tiny", "small", "large", "small"]


def test_models_are_listed_without_services(cli: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTPROMPT_MODELS", str(tmp_path / "none"))
    for name in ("TRAINER", "INFERENCE"):
        monkeypatch.setenv(f"SOFTPROMPT_{name}", "127.0.0.1:9")
    done = cli("models", "list")
    assert (done.code, len(done.err.splitlines())) == (0, 2)
    assert len(done.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("error", "arguments", "meant"),
    [
        (NotFound("prompt", "tnoe"), ("--prompt", "tnoe"), "tone"),
        (NotFound("prompt", "Tone"), ("--prompt", "Tone"), "tone"),
        (NotFound("alias", "tone@defualt"), ("--prompt", "tone@defualt"), "tone@default"),
        (NotFound("prompt", "tonne"), ("--prompt", "tonne@default"), "tone"),
        (NotFound("version", "prompts/tne/versions/2"), ("--prompt", "tne@2"), "tone@2"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_is_meant(
    cli: CliRunner, here: Services, monkeypatch: pytest.MonkeyPatch, error: NotFound, arguments: Any, meant: str
) -> None:
    def refuse(request: Any) -> None:
        raise error

    monkeypatch.setattr(here.inference, "_check", refuse)
    done = cli("generate", "hi", *arguments)
    assert done.code == 3
    assert f"hint: do you mean {meant!r}?" in done.err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("prompts", "rollback"), "do you mean 'alias set'?"),
        (("prompts", "lst"), "do you mean 'list'?"),
        (("jobs", "list", "--state", "done"), "error: --state: 'done' is not one of queued, running,"),
        (("train", "x"), "do you mean 'tune'?"),
        (("jobs", "rm"), "do you mean 'delete'?"),
        (("prompts", "alias", "delete"), "do you mean 'remove'?"),
        (("jobs", "show", f"{ID[:-1]}x"), f"hint: do you mean {ID!r}?"),
        (("tune", "data.jsnl", "--prompt", "x"), "hint: do you mean 'data.jsonl'?"),
        (("generate", "--file", "dat.jsonl"), "file 'dat.jsonl' does not exist\nhint: do you mean 'data.jsonl'?"),
    ],
)
def test_every_name_has_a_suggestion(
    cli: CliRunner, here: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: Any, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("{}")
    here.trainer.jobs = {f"tuningJobs/{ID}": succeeded_job()}
    assert meant in cli(*arguments).err


def test_a_name_that_resembles_none_gets_no_suggestion(cli: CliRunner, here: Services) -> None:
    assert "do you mean" not in cli("generate", "hi", "--prompt", "unknown").err


def test_misspelt_commands_and_options_are_suggested(cli: CliRunner) -> None:
    assert "generate" in cli("genrate", "hi").err
    assert "list" in cli("jobs", "lits").err
    assert "--prompt" in cli("generate", "hi", "--promt", "x").err


def test_three_commands_follow_a_start() -> None:
    usual = {"SOFTPROMPT_TRAINER": "127.0.0.1:50051", "SOFTPROMPT_INFERENCE": "127.0.0.1:50052"}
    assert [line.split()[1] for line in after_start(usual)] == ["init", "tune", "chat"]
    assert {line.index("#") for line in after_start(usual)} == {58}
    other = after_start({**usual, "SOFTPROMPT_TRAINER": "127.0.0.1:7"})
    assert other[0] == "export SOFTPROMPT_TRAINER=127.0.0.1:7"
    assert len(other) == 4


def test_the_json_of_a_finding_has_its_parts(cli: CliRunner, here: Services) -> None:
    first = json.loads(cli("doctor", "--json").out.splitlines()[0])
    assert first.keys() == {"subject", "text", "is_problem", "fix"}
