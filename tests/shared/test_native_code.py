"""C that is compiled where it runs: compiled once, loaded if it is ours, and missed where there is no compiler or another processor."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from shared import native_code

can_compile = shutil.which(native_code.COMPILER) is not None and native_code.platform.machine() == native_code.MACHINE
needs_compiler = pytest.mark.skipif(not can_compile, reason="no compiler, or another machine")
TORCH_OPENMP = Path(torch.__file__).parent / "lib" / "libgomp.so.1"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a processor that can run it, with a cache of its own."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(native_code.platform, "machine", lambda: native_code.MACHINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "answer.c"
    source.write_text('#include "avx512.h"\nint answer(void) { return 26 + LANES; }\n')
    return source


@needs_compiler
def test_it_is_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = native_code.load(source)
    assert isinstance(loaded, ctypes.CDLL)
    assert loaded.answer() == 42
    monkeypatch.setattr(native_code, "COMPILER", "no-such-compiler")
    assert native_code.load(source) is not None
    source.write_text(source.read_text() + "\n")
    assert native_code.load(source) is None, "of another source"


@needs_compiler
def test_what_an_image_brings_needs_no_cache(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native_code.compile_into(source, source.parent)
    monkeypatch.setattr(native_code, "COMPILER", "no-such-compiler")
    assert native_code.load(source) is not None
    assert not (source.parent / "cache").exists()


def test_without_a_compiler_it_is_missing_and_a_warning_says_so(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_code, "COMPILER", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert native_code.load(source) is None
    assert "no no-such-compiler is installed" in caplog.text


@needs_compiler
def test_another_processor_is_not_asked_to_run_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert native_code.load(source) is None
    assert not (source.parent / "cache").exists()


@needs_compiler
def test_whoever_compiles_at_the_same_time_makes_the_same_file(source: Path) -> None:
    folder = source.parent / "kernels"
    folder.mkdir()
    with ThreadPoolExecutor(3) as pool:
        made = set(pool.map(native_code.compile_into, [source] * 3, [folder] * 3))
    assert [*folder.iterdir()] == [*made]


@needs_compiler
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="another processor")
@pytest.mark.skipif(not TORCH_OPENMP.exists(), reason="builds for CUDA name OpenMP otherwise; there a GPU computes")
@pytest.mark.parametrize("module", ["inference_service.engine.native_kernels", "trainer_service.training.native_kernels"])
def test_torch_and_the_kernels_share_one_team_of_threads(module: str, tmp_path: Path) -> None:
    script = f"import {module} as kernels; assert kernels.load(); print(open('/proc/self/maps').read())"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert len({line.split()[-1] for line in done.stdout.splitlines() if "libgomp" in line}) == 1


def test_code_that_others_could_have_planted_is_not_loaded(source: Path) -> None:
    folder = source.parent / "cache" / "softprompt" / "kernels"
    folder.mkdir(parents=True)
    cached = folder / native_code._file_name(source)
    cached.write_bytes(b"")
    cached.chmod(0o700)
    folder.chmod(0o700)
    assert native_code._find(source) == cached
    for path in (cached, folder):
        path.chmod(0o777)
        assert native_code._find(source) is None
        path.chmod(0o700)


@needs_compiler
def test_nothing_is_compiled_into_a_folder_that_others_write_to(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = source.parent / "cache" / "softprompt" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert native_code.load(source) is None
    assert "others may write to" in caplog.text
    assert not [*folder.iterdir()]


@needs_compiler
def test_a_source_that_does_not_compile_is_reported(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    source.write_text("int linear(")
    with pytest.raises(RuntimeError, match=r"gcc refused answer\.c: .*error"):
        native_code.compile_into(source, source.parent)
    assert [*source.parent.iterdir()] == [source]
    assert native_code.load(source) is None
    assert "refused answer.c" in caplog.text
