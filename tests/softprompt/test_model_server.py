"""Base models from a file server (any web server over directories with manifests); waiting for another download."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import (
    DamagedBlob,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    SoftPromptError,
    Unauthenticated,
    Unavailable,
)
from shared.model import fingerprint
from softprompt import model_server
from softprompt.model_folder import Origin, is_complete, wait_until_complete
from softprompt.model_names import parse_models
from softprompt.model_server import MANIFEST, check_server
from softprompt.models import pull
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.hub_server import FIRST, SECOND
from tests.softprompt.model_files import TOKEN, WEIGHTS, FileServer, file_server, make_model

EMPTY = hashlib.sha256(b"{}").hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    with file_server(tmp_path / "served") as found:
        yield found


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_a_model_comes_complete_and_marked(server: FileServer, models: Path) -> None:
    made = make_model(server.root / "small")
    assert pull("mine=small", models, server=server.url) == models / "mine"
    names = {path.name for path in (models / "mine").iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", ".softprompt-origin.json", fingerprint.FILE}
    mark = fingerprint.known(models / "mine")
    assert mark is not None
    assert (mark.shipped, mark.fingerprint) == (True, made)
    asked = len(server.tokens)
    assert pull("mine=small", models, server=server.url) == models / "mine"
    assert len(server.tokens) == asked, "what is there is not asked for again"


def test_a_broken_connection_is_continued(server: FileServer, models: Path) -> None:
    make_model(server.root / "small")
    server.breaks_after = 1000
    pull("small", models, server=server.url)
    assert (models / "small" / "model.safetensors").read_bytes() == WEIGHTS
    assert "bytes=1000-" in server.ranges


def test_pins_by_commit_and_by_fingerprint(server: FileServer, models: Path) -> None:
    made = make_model(server.root / "tiny", "Org/Tiny")
    assert pull(f"Org/Tiny@{FIRST}", models, server=server.url) == models / "tiny"
    assert pull(f"tiny2=tiny@{made}", models, server=server.url) == models / "tiny2"
    for name, message in (
        (f"a=Org/Tiny@{SECOND}", f"not at {SECOND}"),
        ("b=Other/Tiny", "has Org/Tiny and not Other/Tiny"),
        (f"c=tiny@sha256:{'0' * 64}", f"has the fingerprint {made}"),
        (f"tiny2=tiny@sha256:{'0' * 64}", f"has the fingerprint {made}"),
    ):
        with pytest.raises(PreconditionFailed, match=message):
            pull(name, models, server=server.url)
    assert sorted(path.name for path in models.iterdir() if not path.name.startswith(".")) == ["tiny", "tiny2"]


def rewritten(server: FileServer, **changes: object) -> None:
    path = server.root / "small" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"fingerprint": "sha256:" + "0" * 64}, DamagedBlob),
        ({"files": [{"name": "../x.json", "size": 1, "sha256": "0" * 64}]}, DamagedBlob),
        ({"files": [{"name": ".softprompt-fingerprint.json", "size": 1, "sha256": "0" * 64}]}, DamagedBlob),
        ({"files": [{"name": "run.py", "size": 1, "sha256": "0" * 64}]}, DamagedBlob),
        ({"files": [{"name": "config.json", "size": 2, "sha256": "0" * 64}]}, DamagedBlob),
        ({"files": [{"name": "model.safetensors", "size": 10, "sha256": "0" * 64}]}, DamagedBlob),
        ({"files": [{"name": "gone.json", "size": 10, "sha256": "0" * 64}]}, NotFound),
        ({"files": []}, DamagedBlob),
        ({"files": [{"name": name, "size": 2, "sha256": EMPTY} for name in ("a.json", "A.json")]}, DamagedBlob),
        ({"files": [{"name": "config.json", "size": 2, "sha256": EMPTY}]}, DamagedBlob),
        ({"files": [{"name": "model.safetensors", "size": 10**18, "sha256": "0" * 64}]}, PreconditionFailed),
        ({"format": 2}, DamagedBlob),
    ],
)
def test_a_hostile_or_damaged_manifest_leaves_nothing(
    server: FileServer, models: Path, changes: dict[str, object], kind: type[SoftPromptError]
) -> None:
    make_model(server.root / "small")
    rewritten(server, **changes)
    with pytest.raises(kind):
        pull("small", models, server=server.url)
    assert [path.name for path in models.iterdir() if not path.name.endswith(".lock")] == []


def test_a_config_that_is_no_object_is_named(server: FileServer, models: Path) -> None:
    make_model(server.root / "small")
    (server.root / "small" / "config.json").write_text("[]")
    digest = {"size": 2, "sha256": hashlib.sha256(b"[]").hexdigest()}
    listed = json.loads((server.root / "small" / MANIFEST).read_text())["files"]
    rewritten(server, files=[{**file, **digest} if file["name"] == "config.json" else file for file in listed])
    with pytest.raises(SoftPromptError, match=r"config\.json that is not a JSON object"):
        pull("small", models, server=server.url)


def test_a_redirect_stays_with_the_web(server: FileServer, models: Path) -> None:
    server.elsewhere = "ftp://127.0.0.1:1"
    with pytest.raises(Unavailable, match="redirect to another protocol is refused: ftp:"):
        pull("small", models, server=server.url)


def test_a_manifest_that_comes_byte_by_byte_is_given_up(
    server: FileServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(server.root / "small")
    monkeypatch.setattr(model_server, "_MANIFEST_SECONDS", -1.0)
    with pytest.raises(Unavailable, match="not complete after"):
        pull("small", models, server=server.url)


def test_an_interrupted_pull_says_so_and_keeps_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: str, directory: str, made: Path, *_: object) -> None:
        made.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("softprompt.models.download_from", interrupted)
    cli = CliRunner(monkeypatch, capsys)
    found = cli("models", "pull", "small", "--from", "http://127.0.0.1:1", "--to", str(models))
    assert (found.code, found.out) == (130, "")
    assert "interrupted: small is not ready; pull it again" in found.err
    assert [path.name for path in models.iterdir()] == [".small.lock"]


def test_a_model_without_manifest_says_how_to_write_one(server: FileServer, models: Path) -> None:
    make_model(server.root / "small")
    (server.root / "small" / MANIFEST).unlink()
    with pytest.raises(NotFound, match="softprompt models manifest"):
        pull("small", models, server=server.url)


def test_tokens(server: FileServer, models: Path) -> None:
    make_model(server.root / "small")
    server.token = TOKEN
    with pytest.raises(Unauthenticated, match="--token-file"):
        pull("small", models, server=server.url)
    with pytest.raises(PermissionDenied, match="403"):
        pull("small", models, server=server.url, token="another")
    pull("small", models, server=server.url, token=TOKEN)
    with pytest.raises(InvalidInput, match="only to https"):
        pull("more=small", models, server="http://files.example/models", token=TOKEN)


def test_a_token_does_not_follow_a_redirect(server: FileServer, models: Path) -> None:
    make_model(server.root / "small")
    with file_server(server.root) as other:
        server.elsewhere = other.url
        pull("small", models, server=server.url, token=TOKEN)
        assert set(server.tokens) == {f"Bearer {TOKEN}"}
        assert set(other.tokens) == {""}


@pytest.mark.parametrize("url", ["ftp://files", "file:///etc", "files.example", "https://"])
def test_what_is_no_server(url: str, models: Path) -> None:
    with pytest.raises(InvalidInput, match="URL of a file server"):
        pull("small", models, server=url)


def test_waiting_ends_when_the_mark_is_there(server: FileServer, models: Path) -> None:
    make_model(server.root / "small", "Org/Small")
    wanted = parse_models(["small", "tiny=small"], local=False)
    with pytest.raises(DeadlineExceeded, match="small, tiny=small"):
        wait_until_complete(wanted, models, 0)
    for model in wanted:
        pull(str(model), models, server=server.url)
    assert wait_until_complete(wanted, models, 0) == [models / "small", models / "tiny"]
    with pytest.raises(PreconditionFailed, match="has small and not Org/Small"):
        wait_until_complete(parse_models(["Org/Small"]), models, 0)


def test_an_earlier_download_is_marked_by_the_next_pull(server: FileServer, models: Path) -> None:
    make_model(models / "small")
    Origin("small", "", "").write(models / "small")
    (models / "small" / fingerprint.FILE).unlink()
    assert not is_complete(models / "small")
    pull("small", models, server=server.url)
    assert is_complete(models / "small")


def test_from_the_command_line(
    server: FileServer, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CliRunner(monkeypatch, capsys)
    monkeypatch.setattr(model_server, "_ATTEMPTS", 1)
    make_model(server.root / "small")
    (server.root / "small" / MANIFEST).unlink()
    written = cli("models", "manifest", str(server.root / "small"))
    assert written.out.strip() == json.loads((server.root / "small" / MANIFEST).read_text())["fingerprint"]
    monkeypatch.setenv("SOFTPROMPT_MODELS_FROM", server.url)
    assert cli("models", "pull", "small,two=small", "--to", str(models)).out.split() == [
        f"{models}/small",
        f"{models}/two",
    ]
    waited = cli("models", "wait", "small", "three=small", "--to", str(models), "--timeout", "0")
    assert (waited.code, "three=small" in waited.err) == (5, True)
    assert cli("models", "wait", "small", "--to", str(models)).out == f"{models}/small\n"


@pytest.mark.parametrize("url", ["http://h:abc", "http://[bad", "https://user:secret@host/models", "ftp://host"])
def test_an_address_that_is_no_file_server_is_refused_and_quotes_no_secret(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_server(url, "")
    assert refused.value.violations[0].field == "from"
    assert "secret" not in str(refused.value)
