"""`softprompt tune` against fakes on real sockets: progress, results, mistakes, interruption."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import JOB, failed_job, finished_events, succeeded_job


@pytest.fixture
def examples(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n')
    return str(path)


def test_tune_follows_to_the_result(cli: CliRunner, here: Services, examples: str) -> None:
    outcome = cli("tune", examples, "--prompt", "tone", "--steps", "2", "--template", "Q: {input}", "--labels", "a, b")
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, "published prompts/tone/versions/1 (alias moved)")
    assert "held out       loss 1.25" in outcome.out
    assert "bare model     loss 3.5" in outcome.out
    assert "with template  loss 2.75" in outcome.out
    assert "best step      2; the score's standard deviation over the last evaluations is 0.0125" in outcome.out
    assert "gradient norm  0.75 at the last step" in outcome.out
    assert "instructed     loss 2.5" in outcome.out
    assert "12-shot        loss 1.2" in outcome.out
    assert (
        "verdict        beats the bare model; loss 1.25 does not beat 1.2 of the model with an instruction and examples"
        in outcome.out
    )
    apart = "4 held-out examples, none of which chose the checkpoint that it judged; 95 % interval of loss: 1 to 1.5"
    assert f"measured on    {apart}" in outcome.out
    chosen = "learning rate 0.015, init labels: 2 steps, chosen  training loss 2.25, 1.5  loss 1.25"
    assert f"tried          {chosen}" in outcome.out
    assert "tried          learning rate 0.005, init text: 1 step, worse  training loss 2.5" in outcome.out
    assert "skipped        3 steps whose loss or gradient was not finite" in outcome.out
    assert "reads like     ' word0' 0.50" in outcome.out
    assert "and 2 more" in outcome.out
    assert "3 of the 4 held-out examples repeat an input of the training data" in outcome.out
    spec = here.trainer.specs[0]
    assert (spec.hyperparameters.num_steps, spec.template.text, list(spec.labels)) == (2, "Q: {input}", ["a", "b"])
    assert not spec.hyperparameters.HasField("batch_size")


def test_tune_from_a_version_and_with_a_gate(cli: CliRunner, here: Services, examples: str) -> None:
    outcome = cli(
        "tune",
        examples,
        "--prompt",
        "tone",
        "--from",
        "tone@1",
        "--beat-current",
        "--alias",
        "canary",
        "--wait-until-served",
        "5",
        "--no-follow",
    )
    assert (outcome.code, outcome.out) == (0, f"{JOB}\n")
    spec = here.trainer.specs[0]
    assert (spec.hyperparameters.init.source, spec.publish.alias, spec.publish.gate.beat_current) == (
        "tone@1",
        "canary",
        True,
    )
    assert spec.publish.wait_until_served.seconds == 5


def test_tune_as_json_is_a_line_for_each_event(cli: CliRunner, here: Services, examples: str) -> None:
    events = cli("tune", examples, "--prompt", "tone", "--json").json
    assert [event["event"] for event in events][:3] == ["StateChanged", "ProgressMade", "Evaluated"]
    assert events[-1]["job"]["result"]["version"] == "prompts/tone/versions/1"


def test_a_job_that_failed_fails_the_command(cli: CliRunner, here: Services, examples: str) -> None:
    here.trainer.events = finished_events(failed_job())
    outcome = cli("tune", examples, "--prompt", "tone")
    assert outcome.code == 1
    assert "NAN_LOSS: the loss is not a number (see spec.hyperparameters.learning_rate)" in outcome.err


def test_several_mistakes_are_each_named(cli: CliRunner, here: Services, examples: str) -> None:
    here.trainer.fail_next = [
        InvalidInput([*InvalidInput.of("line 1", "bad").violations, *InvalidInput.of("line 7", "worse").violations])
    ]
    outcome = cli("tune", examples, "--prompt", "tone")
    assert outcome.code == 2
    assert "  line 1: bad\n  line 7: worse" in outcome.err


def test_a_missing_file_is_not_found(cli: CliRunner, here: Services) -> None:
    outcome = cli("tune", "no-such.jsonl", "--prompt", "tone")
    assert outcome.code == 3
    assert "no-such.jsonl" in outcome.err


def test_options_that_exclude_each_other(cli: CliRunner, here: Services, examples: str) -> None:
    assert cli("tune", examples, "--prompt", "tone", "--from", "x", "--init-text", "y").code == 2


def test_interrupting_a_followed_job_lets_go_of_it(here: Services) -> None:
    command = [
        sys.executable,
        "-m",
        "softprompt.cli",
        "jobs",
        "watch",
        "job1",
        "--json",
        "--trainer",
        here.trainer_endpoint,
    ]
    here.trainer.events = here.trainer.events[:2]
    here.trainer.hold_watch = asyncio.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(2):
            json.loads(process.stdout.readline())
        process.send_signal(2)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert f"softprompt jobs cancel {JOB}" in errors
    assert "Traceback" not in errors


def test_examples_that_were_dropped_or_truncated_are_counted(cli: CliRunner, here: Services, examples: str) -> None:
    job = succeeded_job()
    job.dataset_statistics.num_dropped, job.dataset_statistics.num_truncated = 3, 2
    here.trainer.jobs[JOB] = job
    assert "too long: 3 examples were dropped, the inputs of 2 were truncated" in cli("jobs", "show", JOB).out
    job.dataset_statistics.num_dropped, job.dataset_statistics.num_truncated = 1, 1
    assert "too long: 1 example was dropped, the inputs of 1 were truncated" in cli("jobs", "show", JOB).out


def test_a_job_that_prepares_its_data_shows_how_far_it_is(cli: CliRunner, here: Services) -> None:
    progress = tuning_pb2.TuningProgress(num_prepared=300, num_examples=40_000)
    here.trainer.jobs[JOB] = tuning_pb2.TuningJob(name=JOB, state=tuning_pb2.TuningJob.STATE_RUNNING, progress=progress)
    assert "step      prepared 300/40000 examples" in cli("jobs", "show", JOB).out
