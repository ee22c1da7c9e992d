"""The command line against fakes on real sockets: what people read, what scripts read, exit codes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from prompttuning.v1 import generation_pb2, tuning_pb2

from shared.errors import (
    FieldViolation,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    SoftPromptError,
    Unavailable,
)
from softprompt.cli.error_report import report
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import DATASET, JOB, succeeded_job
from tests.waiting import wait_until


@pytest.mark.usefixtures("quick_retries")
def test_no_server_there_says_where_it_looked_and_what_to_do(cli: CliRunner) -> None:
    outcome = cli("jobs", "list", "--trainer", "127.0.0.1:1")
    assert outcome.code == 5
    assert "127.0.0.1:1" in outcome.err
    assert "softprompt up" in outcome.err
    assert "Traceback" not in outcome.err


def test_an_overloaded_service_says_when_to_come_back(cli: CliRunner, here: Services) -> None:
    here.trainer.fail_next = [
        Overloaded("the queue is full", retry_after_seconds=90)
    ]  # too long for the client to wait by itself
    outcome = cli("jobs", "show", JOB)
    assert outcome.code == 5
    assert "try again in 90 s" in outcome.err


def test_jobs(cli: CliRunner, here: Services) -> None:
    assert len(cli("jobs", "list", "--limit", "3", "--json").json) == 3
    assert "tuningJobs/0" in cli("jobs", "list", "--state", "failed").out
    here.trainer.jobs[JOB].progress.metrics["loss"] = 0.1911
    here.trainer.jobs[JOB].result.metrics["loss"] = 0.1923
    shown = cli("jobs", "show", "job1")
    assert "0.1911" not in shown.out, "the result's metrics, on the examples that judge, are the job's"
    assert "0.1923" in shown.out
    assert "SUCCEEDED" in shown.out
    assert "published prompts/tone/versions/1" in shown.out
    assert cli("jobs", "show", "nope").code == 3
    assert "is cancelling" in cli("jobs", "cancel", "job1").out
    assert "is paused" in cli("jobs", "pause", "job1").out
    assert cli("jobs", "resume", "job1", "--json").json[0]["state"] == "QUEUED"
    assert "published" in cli("jobs", "watch", "job1").out
    assert "is deleted" in cli("jobs", "delete", "job1").out
    assert cli("jobs", "list", "--oldest-first", "--label", "team=web", "--limit", "2", "--json").code == 0
    assert "KEY=VALUE" in cli("jobs", "list", "--label", "team").err


def test_a_part_of_an_id_names_a_job(cli: CliRunner, here: Services) -> None:
    first, second = "01m8hxbg4x7k9m2n5p8q1r4s7t", "01m8hxbg5a7k9m2n5p8q1r4v9z"
    for id in (first, second):
        here.trainer.jobs[f"tuningJobs/{id}"] = succeeded_job()
        here.trainer.jobs[f"tuningJobs/{id}"].name = f"tuningJobs/{id}"
    for part in ("8q1r4s7t", "4s7t", "01m8hxbg4", "tuningJobs/8q1r4s7t", first):
        assert first in cli("jobs", "show", part).out
    assert cli("jobs", "show", "k9m2").code == 3, "the middle"
    assert cli("jobs", "show", "s7t").code == 3, "too short"
    for command in ("show", "watch", "pause", "delete", "clone", "report", "curve"):
        outcome = cli("jobs", command, "01m8hxbg")
        assert outcome.code == 3
        assert first in outcome.err
        assert second in outcome.err
    assert cli("jobs", "compare", first, "8q1r4s7t").code == 2, "twice the same job"
    options = ("--from", "tuningJobs/4s7t", "--no-follow")
    assert cli("jobs", "clone", "4v9z", *options).code == 0
    assert here.trainer.specs[-1].hyperparameters.init.source == f"tuningJobs/{first}"


def test_a_job_is_cloned_and_gone_on_from(cli: CliRunner, here: Services, tmp_path: Path) -> None:
    trainer = here.trainer
    job = trainer.jobs[JOB]
    job.spec.CopyFrom(
        tuning_pb2.TuningSpec(prompt="tone", dataset=tuning_pb2.DatasetSource(dataset=DATASET), priority=3)
    )
    job.spec.hyperparameters.num_epochs = 4
    changed = ("--prompt", "other", "--steps", "7", "--learning-rate", "0.5", "--alias", "-", "--no-follow")
    assert cli("jobs", "clone", "job1", *changed).out.strip() == JOB
    spec = trainer.specs[-1]
    assert (spec.prompt, spec.priority, spec.publish.alias, spec.dataset.dataset) == ("other", 3, "-", DATASET)
    assert (spec.hyperparameters.num_steps, spec.hyperparameters.HasField("num_epochs")) == (7, False)
    more = tmp_path / "more.jsonl"
    more.write_text('{"input": "a", "output": "b"}\n')
    job.result.version = "prompts/tone/versions/2"
    assert cli("jobs", "continue", "job1", "--data", str(more), "--no-follow", "--json").json[0]["name"] == JOB
    assert trainer.specs[-1].hyperparameters.init.source == "prompts/tone/versions/2"
    assert trainer.uploads[-1][1] == more.read_bytes()
    job.result.Clear()
    assert cli("jobs", "continue", "job1", "--no-follow").code != 0, "it has made nothing"
    job.best_prompt_kept = True
    assert cli("jobs", "continue", "job1", "--no-follow").code == 0
    assert trainer.specs[-1].hyperparameters.init.source == JOB
    assert "jobs continue" in cli("jobs", "show", "job1").out


def test_prompts(cli: CliRunner, here: Services) -> None:
    assert "default -> 2" in cli("prompts", "list").out
    assert cli("prompts", "list", "--json").json[0]["latest_version"] == 2
    assert "sha256:00" in cli("prompts", "show", "tone").out
    assert "loss 1.5" in cli("prompts", "versions", "tone").out
    assert "tone: canary -> 1:0.9 2:0.1" in cli("prompts", "alias", "set", "tone", "canary", "1:0.9", "2:0.1").out
    assert cli("prompts", "alias", "set", "tone", "default", "3", "--expect", "1").code == 4
    assert cli("prompts", "alias", "set", "tone", "default", "newest").code == 2


def test_what_a_replica_refused_is_shown_with_the_reason(cli: CliRunner, here: Services) -> None:
    state = generation_pb2.LoadedPrompt.STATE_QUARANTINED
    here.inference.loaded = [
        [generation_pb2.LoadedPrompt(version="prompts/tone/versions/3", state=state, reason="not finite")]
    ]
    outcome = cli("prompts", "loaded", "tone")
    assert "tone@3" in outcome.out
    assert "QUARANTINED" in outcome.out
    assert "not finite" in outcome.out


def test_generate_streams_text(cli: CliRunner, here: Services) -> None:
    outcome = cli("generate", "--prompt", "tone", "hi", "--temperature", "0", "--stop", "END", "--stop", "###")
    assert (outcome.code, outcome.out, outcome.err) == (0, "Hello wide world\n", "")
    assert list(here.inference.requests[0].sampling.stop_sequences) == ["END", "###"]


def test_an_empty_answer_says_why(cli: CliRunner, here: Services) -> None:
    here.inference.pieces = ["", " "]
    outcome = cli("generate", "hi", "--prompt", "support-tone")
    assert outcome.code == 0
    assert "The answer is empty: the model ended the answer before it wrote any text (finish reason EOS)." in " ".join(
        outcome.err.split()
    )


def test_generate_reads_stdin(cli: CliRunner, here: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe\n"))
    cli("generate", "-")
    assert here.inference.requests[0].input.text == "from a pipe"


def test_generate_as_json_lines(cli: CliRunner, here: Services) -> None:
    lines = cli("generate", "hi", "--json").json
    assert [next(iter(line)) for line in lines] == ["start", "delta", "delta", "delta", "end"]
    assert lines[-1]["end"]["finish_reason"] == "EOS"


def test_completions_are_printed_one_after_the_other(cli: CliRunner, here: Services) -> None:
    outcome = cli("generate", "hi", "--n", "2")
    assert outcome.out == "Hello wide world\nHello wide world\n"
    lines = cli("generate", "hi", "--n", "2", "--json").json
    assert [line["delta"]["index"] for line in lines if "delta" in line] == [0, 1] * 3
    assert [line["end"]["index"] for line in lines if "end" in line] == [0, 1]


def test_generate_with_an_unknown_prompt(cli: CliRunner, here: Services) -> None:
    assert cli("generate", "--prompt", "unknown", "hi").code == 3


def test_generate_names_the_field(cli: CliRunner, here: Services) -> None:
    outcome = cli("generate", "")
    assert outcome.code == 2
    assert "input.text: must not be empty" in outcome.err


def test_classify(cli: CliRunner, here: Services) -> None:
    outcome = cli("classify", "--prompt", "tone", "great")
    assert outcome.out.splitlines()[1].split() == ["positive", "0.9000"]
    assert cli("classify", "--prompt", "tone", "great", "--json").json[0]["best"] == 1


@pytest.mark.usefixtures("quick_retries")
def test_info_shows_the_one_that_answers(cli: CliRunner, here: Services) -> None:
    assert "tiny" in cli("info").out
    outcome = cli("info", "--trainer", "127.0.0.1:1", "--json")
    assert outcome.code == 5
    assert [line["info"] is None for line in outcome.json] == [True, False]
    assert "error: trainer 127.0.0.1:1: " in outcome.err, "which of the two services it is"


def test_info_shows_the_inference_service_to_a_caller_whom_the_trainer_refuses(cli: CliRunner, here: Services) -> None:
    """A generator may ask the inference service for its model, and the trainer for nothing."""
    here.trainer.fail_next = [PermissionDenied("no role")]
    outcome = cli("info")
    assert outcome.code == 4
    assert outcome.out.startswith(f"inference  {here.inference_endpoint}")
    assert f"error: trainer {here.trainer_endpoint}: no role" in outcome.err
    assert "callers file" in outcome.err


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (Overloaded("full", 1.2), "try again in 2 s"),
        (Overloaded("full", 120), "try again in 120 s"),
        (Overloaded("full", 18_988.04), "try again in 5 h 17 min"),
        (Overloaded("full", 600), "try again in 10 min"),
        (PermissionDenied("moves an alias", role="publisher"), "--alias -"),
        (NotFound("prompt", "tone"), "softprompt prompts list"),
    ],
)
def test_hints_say_what_to_do_next(error: SoftPromptError, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    report(error)
    assert hint in capsys.readouterr().err


def test_an_interrupted_stream_is_cancelled_and_exits_130(here: Services) -> None:
    here.inference.endless = True
    command = [sys.executable, "-m", "softprompt.cli", "generate", "hi", "--inference", here.inference_endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.read(5) == "Hello"
        process.send_signal(2)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    wait_until(here.inference.stream_ended.is_set)


def test_models_pull_prints_the_directory(cli: CliRunner, tiny_model_dir: Path) -> None:
    path = str(tiny_model_dir)
    assert cli("models", "pull", path).out == f"{path}\n"
    assert cli("models", "pull", path, "--json").json == [{"name": path, "path": path}]
    outcome = cli("models", "pull", "/no/such/model")
    assert outcome.code == 3
    assert "smollm2-135m-instruct" in outcome.err


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("spec.prompt", "--prompt"),
        ("spec.hyperparameters.num_steps", "--steps"),
        ("spec.template.text", "--template"),
        ("spec.publish.alias", "--alias"),
        ("spec.of_the_future", "spec.of_the_future"),
    ],
)
def test_a_field_of_a_spec_is_named_as_its_option(cli: CliRunner, here: Services, field: str, shown: str) -> None:
    here.trainer.fail_next = [InvalidInput.of(field, "is wrong")]
    assert f"error: {shown}: is wrong" in cli("jobs", "show", JOB).err
    here.trainer.fail_next = [InvalidInput([FieldViolation(name, "is wrong") for name in (field, "dataset")])]
    assert f"  {shown}: is wrong" in cli("jobs", "show", JOB).err


def test_a_mistake_of_the_program_is_no_traceback(
    cli: CliRunner, here: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softprompt.cli.jobs.job_name", lambda client, text: 1 / 0)
    outcome = cli("jobs", "show", "x")
    assert outcome.code == 1
    assert "ZeroDivisionError" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_service_that_comes_back_is_not_even_noticed(cli: CliRunner, here: Services) -> None:
    here.trainer.fail_next = [Unavailable("restarting")]
    assert cli("jobs", "show", "job1").code == 0


def test_output_keeps_brackets_and_colons(cli: CliRunner, here: Services) -> None:
    outcome = cli("classify", "fine", "--prompt", "tone", "--label", "[bold]good", "--label", ":cat:")
    assert "[bold]good" in outcome.out
    assert ":cat:" in outcome.out


def test_loaded_prompts_show_the_memory_of_their_keys_and_values(cli: CliRunner, here: Services) -> None:
    loaded, known = generation_pb2.LoadedPrompt.STATE_LOADED, generation_pb2.LoadedPrompt.STATE_KNOWN
    here.inference.loaded = [
        [
            generation_pb2.LoadedPrompt(
                version="prompts/tone/versions/2", state=loaded, num_virtual_tokens=20, prefix_kv_bytes=1_800_000
            ),
            generation_pb2.LoadedPrompt(version="prompts/tone/versions/1", state=known, num_virtual_tokens=20),
        ]
    ]
    header, second, first, _ = cli("prompts", "loaded").out.splitlines()
    assert header.split()[:6] == ["VERSION", "STATE", "KIND", "ALIASES", "TOKENS", "KIB"]
    assert second.split()[:4] == ["tone@2", "LOADED", "20", "1758"]
    assert first.split() == ["tone@1", "KNOWN", "20", "0"], "no memory and no request"
