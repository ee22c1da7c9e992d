"""`softprompt models pull` of models from a hub: into the models directory, at a pinned commit, once, even if
other processes pull it at the same time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import InvalidInput
from shared.model import fingerprint
from softprompt.model_names import WantedModel, parse_models
from tests.softprompt.hub_server import (
    EXPIRED,
    FIRST,
    FORGED,
    GATED,
    GRANTED,
    MODEL,
    SECOND,
    STRANGER,
    Hub,
    files_of,
    hub_server,
)

PULL = "from softprompt.cli.main import main; main()"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "volume"


def begin(hub: Hub, models: Path, *names: str, **variables: str) -> subprocess.Popen[str]:
    """The process as a container runs it: nothing is kept but what is in the models directory."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(models / ".huggingface"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "SOFTPROMPT_MODELS": str(models),
        **variables,
    }
    command = [sys.executable, "-c", PULL, "models", "pull", *names]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pull(hub: Hub, models: Path, *names: str, **variables: str) -> tuple[int, str]:
    done = begin(hub, models, *names, **variables)
    out, complaint = done.communicate()
    return done.returncode, out if done.returncode == 0 else " ".join(complaint.split())


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_several_models_at_pinned_commits_land_in_the_models_directory(hub: Hub, models: Path) -> None:
    wanted = f"{MODEL}@{FIRST}, newer={MODEL}@{SECOND}"
    assert pull(hub, models, wanted) == (0, f"{models}/tiny.model\n{models}/newer\n")
    assert sorted(path.name for path in models.iterdir() if not path.name.startswith(".")) == ["newer", "tiny.model"]
    for name, commit in (("tiny.model", FIRST), ("newer", SECOND)):
        assert weights(models / name) == files_of(commit)["model.safetensors"]
        assert {path.name for path in (models / name).iterdir()} == {
            "config.json",
            "model.safetensors",
            ".softprompt-origin.json",
            ".softprompt-fingerprint.json",
        }
        mark = fingerprint.known(models / name)
        assert mark is not None, "services don't hash it again"
        assert mark.shipped
        assert not (models / name / fingerprint.FILE).stat().st_mode & 0o222
    asked = hub.requests.total()
    assert pull(hub, models, wanted)[0] == 0
    assert hub.requests.total() == asked, "a later start needs no network"


def test_pods_that_start_at_once_download_a_model_once(hub: Hub, models: Path) -> None:
    pods = [begin(hub, models, f"{MODEL}@{FIRST}") for _ in range(3)]
    assert [pod.communicate()[0] for pod in pods] == [f"{models}/tiny.model\n"] * 3
    assert hub.downloads == 1
    assert not list(models.glob(".*partial*"))


def test_a_mark_that_a_model_brings_proves_nothing(hub: Hub, models: Path) -> None:
    code, complaint = pull(hub, models, f"{MODEL}@{FORGED}")
    assert (code, f"not {FORGED}" in complaint) == (4, True)
    assert not (models / "tiny.model").exists()
    assert pull(hub, models, MODEL)[0] == 0
    assert fingerprint.of(models / "tiny.model").fingerprint != FORGED
    assert json.loads((models / "tiny.model" / ".softprompt-origin.json").read_text())["commit"] == SECOND


def test_another_revision_under_the_same_name_is_refused_by_name(hub: Hub, models: Path) -> None:
    assert pull(hub, models, MODEL)[0] == 0
    assert json.loads((models / "tiny.model" / ".softprompt-origin.json").read_text())["commit"] == SECOND
    assert pull(hub, models, f"{MODEL}@{SECOND}")[0] == 0
    code, complaint = pull(hub, models, f"{MODEL}@{FIRST}")
    assert code != 0
    assert SECOND in complaint
    assert f"not at {FIRST}" in complaint
    assert weights(models / "tiny.model") == files_of(SECOND)["model.safetensors"]


def test_files_of_an_unknown_commit_are_no_pinned_ones(hub: Hub, models: Path) -> None:
    """As those of the catalogue, or those that another program has put there."""
    assert pull(hub, models, MODEL)[0] == 0
    (models / "tiny.model" / ".softprompt-origin.json").unlink()
    assert pull(hub, models, MODEL)[0] == 0
    code, complaint = pull(hub, models, f"{MODEL}@{SECOND}")
    assert (code, f"does not say which commit of {MODEL} it has" in complaint) == (4, True)
    known = fingerprint.of(models / "tiny.model").fingerprint
    assert pull(hub, models, f"{MODEL}@{known}")[0] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{MODEL}@{'3' * 40}", "at revision 3333"),
        ("org/other", "the hub has none"),
        ("tiny@v1", "only a hub id has a revision"),
    ],
)
def test_what_is_not_there_is_named_and_leaves_nothing(hub: Hub, models: Path, name: str, message: str) -> None:
    code, complaint = pull(hub, models, name)
    assert code != 0
    assert message in complaint
    assert not models.exists() or [path.name for path in models.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("token", "code", "message"),
    [
        ("", 4, "gated (401): accept its terms at http://127.0.0.1"),
        (STRANGER, 4, "gated (403): accept its terms at http://127.0.0.1"),
        (EXPIRED, 4, "the hub refuses the token (401)"),
    ],
)
def test_a_gated_model_says_what_to_do(hub: Hub, models: Path, token: str, code: int, message: str) -> None:
    found = pull(hub, models, GATED, HF_TOKEN=token)
    assert found[0] == code
    assert message in found[1]
    assert "callers file" not in found[1]
    assert ("give a token in HF_TOKEN or --token-file" in found[1]) == (not token)


def test_a_token_opens_a_gated_model(hub: Hub, models: Path, tmp_path: Path) -> None:
    assert pull(hub, models, f"{GATED}@{FIRST}", HF_TOKEN=GRANTED)[0] == 0
    file = tmp_path / "token"
    file.write_text(f"{GRANTED}\n")
    assert pull(hub, models, f"again={GATED}", "--token-file", str(file), HF_TOKEN=STRANGER)[0] == 0
    file.write_text("two words")
    code, complaint = pull(hub, models, f"third={GATED}", "--token-file", str(file))
    assert (code, "must contain one token" in complaint) == (2, True)


@pytest.mark.parametrize(
    ("text", "directory", "revision"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct", ""),
        ("small=smollm2-135m-instruct", "small", ""),
        ("Org/Model-1.5B", "model-1.5b", ""),
        ("Org/Model@refs/pr/1", "model", "refs/pr/1"),
        (f"mine=Org/Model@{FIRST}", "mine", FIRST),
    ],
)
def test_names(text: str, directory: str, revision: str) -> None:
    wanted = WantedModel.parse(text)
    assert (wanted.directory, wanted.revision) == (directory, revision)


@pytest.mark.parametrize("text", ["", "=a/b", "../x=a/b", ".hidden=a/b", "a/b@", "a/b@../x@y", "catalogued@1", "x="])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(InvalidInput):
        WantedModel.parse(text)


def test_two_models_for_one_directory_are_refused() -> None:
    assert [model.directory for model in parse_models(["a/one,b/two", "three=c/one"])] == ["one", "two", "three"]
    assert len(parse_models(["a/one,a/one"])) == 2
    with pytest.raises(InvalidInput, match="no model is named"):
        parse_models([" , "])
    with pytest.raises(InvalidInput, match="stored as 'one'"):
        parse_models(["a/one", "b/one"])
