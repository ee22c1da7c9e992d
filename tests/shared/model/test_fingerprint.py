"""A base model's fingerprint: over weights, config and tokenizer, hashed once and again when a file changes."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from shared.errors import PreconditionFailed
from shared.file_digest import sha256_of
from shared.model import fingerprint
from shared.model.base_model import inspect
from tests.shared.model.conftest import CACHE
from tests.tiny_models import save_tiny_llama


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed, a minute after they were written."""
    monkeypatch.setattr(fingerprint, "_now_ns", lambda: time.time_ns() + 60 * 10**9)
    names: list[str] = []

    def note(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(fingerprint, "sha256_of", note)
    return names


def change_one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_it_says(model_dir: Path) -> None:
    info = inspect(model_dir)
    assert (info.id, info.architecture) == ("tiny-llama", "LlamaForCausalLM")
    assert (info.hidden_size, info.vocab_size, info.num_layers, info.max_positions) == (64, 261, 2, 512)
    assert info.fingerprint.startswith("sha256:")
    assert inspect(model_dir, id="other").id == "other"


def test_the_same_bytes_elsewhere_have_the_same_fingerprint(model_dir: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(model_dir, tmp_path / "elsewhere"))
    assert inspect(elsewhere).fingerprint == inspect(model_dir).fingerprint


def test_one_changed_byte_of_the_weights_changes_it(model_dir: Path) -> None:
    before = inspect(model_dir)
    change_one_byte(model_dir / "model.safetensors")
    after = inspect(model_dir)
    assert after.fingerprint != before.fingerprint
    assert after.tokenizer_digest == before.tokenizer_digest


def test_another_tokenizer_changes_both_digests(model_dir: Path) -> None:
    before = inspect(model_dir)
    path = model_dir / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clean_up_tokenization_spaces": True}))
    after = inspect(model_dir)
    assert after.fingerprint != before.fingerprint
    assert after.tokenizer_digest != before.tokenizer_digest


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "vocab.txt", "added_tokens.json"])
def test_without_tokenizer_json_every_file_of_the_tokenizer_counts(model_dir: Path, name: str) -> None:
    (model_dir / "tokenizer.json").unlink()
    (model_dir / name).write_bytes(b"one")
    before = inspect(model_dir)
    (model_dir / name).write_bytes(b"two")
    after = inspect(model_dir)
    assert after.tokenizer_digest != before.tokenizer_digest
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("name", ["added_tokens.json", "additional_chat_templates/default.jinja"])
def test_beside_tokenizer_json_what_transformers_reads_counts(model_dir: Path, name: str) -> None:
    found = [inspect(model_dir).fingerprint]
    (model_dir / name).parent.mkdir(exist_ok=True)
    for token in ("one", "two"):
        (model_dir / name).write_text(json.dumps({token: 300}))
        found.append(inspect(model_dir).fingerprint)
    assert len(set(found)) == 3


def test_added_tokens_that_the_config_names_itself_are_not_read_elsewhere(model_dir: Path) -> None:
    path = model_dir / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": {}}))
    before = inspect(model_dir)
    (model_dir / "added_tokens.json").write_text('{"one": 300}')
    assert inspect(model_dir).fingerprint == before.fingerprint


def test_of_the_config_only_what_matters_counts(model_dir: Path) -> None:
    path = model_dir / "config.json"
    before, config = inspect(model_dir), json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "0.0.1", "_name_or_path": "/elsewhere"}))
    assert inspect(model_dir).fingerprint == before.fingerprint
    path.write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert inspect(model_dir).fingerprint != before.fingerprint


def test_it_is_hashed_once_and_again_when_a_file_changes(model_dir: Path, hashed: list[str]) -> None:
    first = inspect(model_dir)
    assert "model.safetensors" in hashed
    hashed.clear()
    assert inspect(model_dir) == first
    assert hashed == []
    weights = model_dir / "model.safetensors"
    size, time_ns = weights.stat().st_size, weights.stat().st_mtime_ns
    change_one_byte(weights)
    os.utime(weights, ns=(time_ns + 1, time_ns + 1))
    assert weights.stat().st_size == size
    assert inspect(model_dir).fingerprint != first.fingerprint
    assert "model.safetensors" in hashed


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\xff", b'{"stamps": {}, "fingerprint": "sha256:0", "tokenizer_digest": "sha256:0"}']
)
def test_a_damaged_cache_is_not_believed(model_dir: Path, damage: bytes) -> None:
    first = inspect(model_dir)
    (model_dir / CACHE).write_bytes(damage)
    assert inspect(model_dir) == first
    assert first.fingerprint in (model_dir / CACHE).read_text()


def test_a_read_only_folder_is_hashed_once(
    model_dir: Path, tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = Path.write_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> int:
        if path.parent == model_dir:
            raise OSError(30, "Read-only file system")
        return write_text(path, *arguments, **options)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "write_text", refuse)
    first = inspect(model_dir)
    assert "model.safetensors" in hashed
    hashed.clear()
    assert inspect(model_dir) == first
    assert hashed == []
    assert not (model_dir / CACHE).exists()
    change_one_byte(model_dir / "model.safetensors")
    assert inspect(model_dir).fingerprint != first.fingerprint


def test_a_folder_that_cannot_be_written_to(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    expected = inspect(model_dir)
    (model_dir / CACHE).unlink()
    monkeypatch.setattr(Path, "write_text", refuse)
    assert inspect(model_dir) == expected
    assert not (model_dir / CACHE).exists()


def test_weights_in_parts_are_hashed_whole(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "one")
    save_tiny_llama(tmp_path / "parts")
    data = (tmp_path / "parts" / "model.safetensors").read_bytes()
    (tmp_path / "parts" / "model-2.safetensors").write_bytes(data)
    before = inspect(tmp_path / "parts").fingerprint
    assert before != inspect(tmp_path / "one").fingerprint
    change_one_byte(tmp_path / "parts" / "model-2.safetensors")
    assert inspect(tmp_path / "parts").fingerprint != before


class TestShipped:
    """A fingerprint that is stored beside the files in an image or a volume."""

    @pytest.fixture
    def copy(self, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        fingerprint.ship(model_dir)
        directory = tmp_path / "copy"
        directory.mkdir()
        for file in model_dir.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
            os.utime(directory / file.name, (1, 1))
        hashed.clear()
        return directory

    def test_it_is_believed_without_hashing_and_then_verified_once(
        self, model_dir: Path, copy: Path, hashed: list[str]
    ) -> None:
        found = inspect(copy).fingerprint
        assert hashed == []
        fingerprint.verify(copy)
        assert "model.safetensors" in hashed
        hashed.clear()
        fingerprint.verify(copy)
        assert hashed == []
        assert found == inspect(model_dir).fingerprint

    def test_another_models_is_found_out(self, copy: Path) -> None:
        change_one_byte(copy / "model.safetensors")
        believed = inspect(copy).fingerprint
        with pytest.raises(PreconditionFailed, match="softprompt models fingerprint"):
            fingerprint.verify(copy)
        fingerprint.ship(copy)
        fingerprint.verify(copy)
        assert inspect(copy).fingerprint != believed

    def test_files_of_another_size_are_hashed(self, copy: Path, hashed: list[str]) -> None:
        with (copy / "config.json").open("a") as config:
            config.write("\n")
        inspect(copy)
        assert "model.safetensors" in hashed
