"""The commands for versions that `docs/prompts.md` shows, against a real trainer and a real replica."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.values.prompts import AliasSet, Deleted, Published, Snapshot
from softprompt import Client
from tests.both_services import both_in_a_process
from tests.softprompt.cli_runner import CliRunner

Endpoints = tuple[str, str]
"""Of the trainer and of the replica."""


@pytest.fixture(scope="module")
def services(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """In a separate process, since the command line blocks."""
    with both_in_a_process(tiny_model_dir, tmp_path_factory.mktemp("both")) as found:
        yield found


@pytest.fixture
def cli(services: Endpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CliRunner:
    trainer, inference = services
    monkeypatch.setenv("SOFTPROMPT_TRAINER", trainer)
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", inference)
    return CliRunner(monkeypatch, capsys)


@pytest.fixture
def client(services: Endpoints) -> Iterator[Client]:
    with Client(*services) as made:
        yield made


def matrix_file(tmp_path: Path, seed: int, width: int = 64) -> str:
    path = tmp_path / f"matrix-{seed}.safetensors"
    save_file({"matrix": torch.randn(6, width, generator=torch.Generator().manual_seed(seed))}, path)
    return str(path)


def answered_by(cli: CliRunner, *arguments: str) -> str:
    return str(cli("generate", "hello", "--max-new-tokens", "1", "--json", *arguments).json[0]["start"]["version"])


def test_the_life_of_a_version(cli: CliRunner, client: Client, tmp_path: Path) -> None:
    first = cli("prompts", "import", matrix_file(tmp_path, 1), "--prompt", "tone", "--template", "Q: {input}")
    assert first.out == "published prompts/tone/versions/1 (6 virtual tokens, named by default)\n"
    second = cli("prompts", "import", matrix_file(tmp_path, 2), "--prompt", "tone", "--alias", "-")
    assert second.out == "published prompts/tone/versions/2 (6 virtual tokens)\n"
    served = client.wait_until_served_by_all("tone@2")
    assert [item.replica for item in served.served] == ["replica-a"]

    assert "tone: canary -> 1:0.5 2:0.5" in cli("prompts", "alias", "set", "tone", "canary", "1:0.5", "2:0.5").out
    assert answered_by(cli, "--prompt", "tone") == "prompts/tone/versions/1"
    routed = {}
    for user in range(12):
        key = f"user-{user}"
        answers = {answered_by(cli, "--prompt", "tone@canary", "--routing-key", key) for _ in range(2)}
        (routed[key],) = answers
    assert set(routed.values()) == {"prompts/tone/versions/1", "prompts/tone/versions/2"}
    scored = cli(
        "classify",
        "hello",
        "--prompt",
        "tone@canary",
        "--label",
        "a",
        "--label",
        "b",
        "--routing-key",
        "user-3",
        "--json",
    )
    assert scored.json[0]["start"]["version"] == routed["user-3"]

    status = cli("prompts", "status", "tone")
    rows = {line.split()[0]: line.split() for line in status.out.splitlines()}
    assert rows["tone@2"][:6] == ["tone@2", "prompt", "canary", "1", "of", "1"]
    assert rows["tone@2"][7] == "s"
    assert "replica replica-a: " in status.out

    assert cli("prompts", "delete", "tone@2").code == 4
    assert "canary is removed" in cli("prompts", "alias", "remove", "tone", "canary").out
    assert "tone@2 is deleted" in cli("prompts", "delete", "tone@2").out
    assert cli("prompts", "show", "tone@2").code == 3
    assert cli("prompts", "alias", "set", "tone", "default", "1", "--expect", "2").code == 4
    assert "tone: default -> 1" in cli("prompts", "alias", "set", "tone", "default", "tone@1").out
    other = cli("prompts", "alias", "set", "tone", "default", "style@1")
    assert (other.code, "an alias of tone can't name a version of style" in other.err) == (2, True)

    exported = cli("prompts", "export", "tone", str(tmp_path / "adapter"), "--base-model", "org/tiny")
    assert "prompts/tone/versions/1 is in" in exported.out
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    )
    assert cli("prompts", "export", "tone", str(tmp_path / "adapter")).code == 4
    assert cli("prompts", "export", "tone", str(tmp_path / "adapter"), "--overwrite").code == 0


def test_imports_that_are_refused_say_why(cli: CliRunner, tmp_path: Path) -> None:
    pickled = tmp_path / "prompt.bin"
    torch.save({"prompt_embeddings": torch.zeros(2, 64)}, pickled)
    refused = cli("prompts", "import", str(pickled), "--prompt", "tone")
    assert refused.code == 2
    assert "prompt.bin is refused: a pickle can run any code" in refused.err
    narrow = cli("prompts", "import", matrix_file(tmp_path, 3, width=32), "--prompt", "tone")
    assert narrow.code == 4
    assert "has width 32" in narrow.err
    assert cli("prompts", "import", str(tmp_path / "nothing"), "--prompt", "tone").code == 3


def test_a_watch_tells_what_happens_and_goes_on_where_it_was(client: Client, cli: CliRunner, tmp_path: Path) -> None:
    changes = client.watch_prompts(name_prefix="watched")
    first = next(changes)
    assert isinstance(first, Snapshot)
    cli("prompts", "import", matrix_file(tmp_path, 1), "--prompt", "watched")
    published, moved = next(changes), next(changes)
    assert isinstance(published, Published)
    assert isinstance(moved, AliasSet)
    assert (published.version.name, moved.alias.targets[0].version) == ("prompts/watched/versions/1", 1)
    client.set_alias("watched", "default", [])
    client.delete_version("watched@1")
    resumed = client.watch_prompts(after_revision=moved.revision, store_id=moved.store_id, name_prefix="watched")
    assert [type(change) for change in itertools.islice(resumed, 2)] == [AliasSet, Deleted]


def test_an_interrupted_watch_ends(services: Endpoints) -> None:
    """Leaving the loop cancels the call, so that closing the client doesn't hang."""
    with Client(*services) as client:
        for change in client.watch_prompts():
            assert isinstance(change, Snapshot)
            break
    assert not [thread for thread in threading.enumerate() if thread.name == "softprompt-client"]
