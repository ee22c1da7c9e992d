"""`softprompt jobs track` with the real packages, offline: everything arrives once, also after an interruption."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from shared.errors import PermissionDenied
from shared.values.enums import JobState
from softprompt.client.sync_client import Client
from softprompt.tracking.entries import Entry, JobTracker, Sink
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import JOB, failed_job, finished_events

JOB_ID = JOB.removeprefix("tuningJobs/")


@pytest.fixture
def cli(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> CliRunner:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its databases need more than mlflow-skinny
    first = services.trainer.events[0].state_changed
    first.effective_spec.prompt = "tone"
    first.effective_spec.hyperparameters.num_steps = 2
    return CliRunner(monkeypatch, capsys)


class Remembered:
    def __init__(self, last_event: int = 0) -> None:
        self.last_event, self.entries = last_event, list[Entry]()

    def write(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.last_event = entry.number

    def close(self) -> None: ...


def tracked(services: Services, sink: Sink) -> None:
    tracker = JobTracker(sink)
    with Client(services.trainer_endpoint) as client:
        for event in client.watch_job(JOB):
            tracker(event)


def test_events_become_curves_texts_and_parameters_once(services: Services, cli: CliRunner) -> None:
    sink = Remembered()
    tracked(services, sink)
    assert [entry.number for entry in sink.entries] == [1, 2, 3, 4, 5, 6]
    assert sink.entries[0].parameters == {"prompt": "tone", "num_steps": "2"}
    assert sink.entries[1].values["train/loss"] == 2.5
    assert (sink.entries[2].step, sink.entries[2].values) == (1, {"held_out/loss": 1.75})
    assert sink.entries[4].texts == {"note": "a worker was lost; the job goes on elsewhere"}
    last = sink.entries[5]
    assert (last.end, last.step, last.values["result/loss"], last.values["result/few_shot/loss"]) == (
        JobState.SUCCEEDED, 2, 1.25, 1.2,
    )  # fmt: skip
    assert last.texts["version"] == "prompts/tone/versions/1"
    later = Remembered(4)
    tracked(services, later)
    assert [entry.number for entry in later.entries] == [5, 6]
    services.trainer.events = finished_events(failed_job())
    failed = Remembered(5)
    tracked(services, failed)
    assert (failed.entries[0].end, failed.entries[0].texts) == (
        JobState.FAILED,
        {"error": "NAN_LOSS: the loss is not a number"},
    )


def interrupted_then_continued(cli: CliRunner, services: Services, *options: str) -> None:
    """Track three events until a new call would not help any more; then the rest, in another second, because W&B names
    a run's files by the second.
    """
    second = int(time.time())
    events = services.trainer.events
    services.trainer.events = events[:3]
    services.trainer.fail_watch = PermissionDenied("no more", caller="x")
    assert cli("jobs", "track", JOB_ID, *options).code == 4
    services.trainer.fail_watch, services.trainer.events = None, events
    while int(time.time()) == second:
        time.sleep(0.01)
    outcome = cli("jobs", "track", JOB_ID, *options)
    assert outcome.code == 0, outcome.err
    assert services.trainer.watched_after[-1] == 3
    assert "tracked up to event 6" in outcome.err


def test_tensorboard_reads_the_curves(cli: CliRunner, services: Services, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = ("--to", "tensorboard", "--directory", str(tmp_path))
    interrupted_then_continued(cli, services, *options)
    assert cli("jobs", "track", JOB_ID, *options).code == 0
    assert services.trainer.watched_after[-1] == 6
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    runs.Reload()

    def points(tag: str) -> list[tuple[int, float]]:
        found: list[Any] = (
            runs.Tensors(JOB_ID, tag) if tag in runs.Runs()[JOB_ID]["tensors"] else runs.Scalars(JOB_ID, tag)
        )
        return [(point.step, round(float(getattr(point, "value", 0.0)), 4)) for point in found]

    assert points("train/loss") == [(1, 2.5)]
    assert points("held_out/loss") == [(1, 1.75)]
    assert points("result/loss") == [(2, 1.25)]
    texts = [runs.Tensors(JOB_ID, tag)[0].tensor_proto.string_val[0].decode() for tag in ("note", "parameters")]
    assert "a worker was lost" in texts[0]
    assert "| num_steps | 2 |" in texts[1]


def test_mlflow_has_one_run_with_curves_parameters_and_the_end(
    cli: CliRunner, services: Services, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    interrupted_then_continued(cli, services, "--to", "mlflow", "--project", "support")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("support")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["num_steps"] == "2"
    assert run.data.tags["softprompt.verdict"].startswith("beats the bare model")
    history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert history == [(1, 2.5)]
    assert run.data.metrics["held_out/loss"] == 1.75


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows of a short .wandb file: a header of 7 bytes, then LevelDB's log records, each a message."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, rows = path.read_bytes(), 7, list[dict[str, Any]]()
    while place + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1, "a whole record"
        if place + 7 + length > len(data):
            break  # the rest is being written
        record = Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def test_wandb_keeps_the_run_offline_and_continues_it(cli: CliRunner, services: Services, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    interrupted_then_continued(cli, services, "--to", "wandb", "--project", "support", "--directory", str(tmp_path))
    parts = sorted((tmp_path / "wandb").glob(f"offline-run-*-{JOB_ID}*/*.wandb"))
    assert len(parts) >= 2
    logged = list[dict[str, Any]]()
    while not any("result/loss" in row for row in logged):  # its own process writes them
        time.sleep(0.01)
        logged = [row for part in parts for row in history(part)]
    assert [row["train/loss"] for row in logged if "train/loss" in row] == [2.5]
    assert [(row["step"], row["held_out/loss"]) for row in logged if "held_out/loss" in row] == [(1, 1.75)]
    assert [row["result/few_shot/loss"] for row in logged if "result/few_shot/loss" in row] == [1.2]


def test_a_tracker_that_is_not_installed_names_its_extra(cli: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    for module in [name for name in sys.modules if name.startswith(("mlflow.", "softprompt.tracking.mlflow"))]:
        monkeypatch.delitem(sys.modules, module)
    outcome = cli("jobs", "track", JOB_ID, "--to", "mlflow")
    assert outcome.code == 2, outcome.err
    assert "pip install 'softprompt[mlflow]'" in outcome.err
    assert cli("jobs", "track", "gone", "--to", "tensorboard").code == 3


def test_an_error_of_a_tracker_is_reported_as_its_own(cli: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    outcome = cli("jobs", "track", JOB_ID, "--to", "mlflow")
    assert outcome.code == 1
    assert "mlflow: " in outcome.err
    assert "a bug" not in outcome.err
