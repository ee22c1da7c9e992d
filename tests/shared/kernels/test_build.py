"""The compiled library: built once in a checkout, shipped in a wheel, loaded only if its hash matches, and skipped
without a compiler or on another processor.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from shared.kernels import build, library

can_compile = build.fits_platform() and shutil.which(build.COMPILER) is not None
needs_compiler = pytest.mark.skipif(not can_compile, reason="no compiler, or another platform")
SET = "plain"
"""An instruction set that every processor has."""
TORCH_OPENMP = Path(torch.__file__).parent / "lib" / "libgomp.so.1"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `shared/kernels` with a small source and its own cache, on a processor that can run it."""
    package = tmp_path / "checkout" / "shared" / "kernels"
    (package / "csrc").mkdir(parents=True)
    (tmp_path / "checkout" / "pyproject.toml").touch()
    (package / "csrc" / "simd.h").write_text("enum { LANES = 16 };\n")
    (package / "csrc" / "answer.c").write_text('#include "simd.h"\nint answer(void) { return 26 + LANES; }\n')
    monkeypatch.setattr(build, "SOURCES", package / "csrc")
    monkeypatch.setattr(build, "SYSTEM", platform.system())
    monkeypatch.setattr(build, "INSTRUCTION_SETS", {platform.machine(): {SET: ()}})
    monkeypatch.setattr(library, "PACKAGE", package)
    monkeypatch.setattr(library, "SIGNATURES", {"answer": (ctypes.c_int, ())})
    monkeypatch.setattr(library, "instruction_set", lambda: SET if build.fits_platform() else None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return package


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "softprompt" / "kernels"


def load() -> ctypes.CDLL | None:
    """Load the library as a new process does, without the cached result."""
    return library.load.__wrapped__()


@needs_compiler
@pytest.mark.usefixtures("package")
def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load()
    assert loaded is not None
    assert loaded.answer() == 42
    made = [*cache.iterdir()]
    monkeypatch.setattr(build, "compile_into", None)
    assert library.find(SET) == made[0]


@needs_compiler
def test_the_name_depends_on_all_that_the_library_is_made_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name() -> str:
        return build.library_name(build.compiler_version(), SET)

    names = [name()]
    for file in ("simd.h", "answer.c", "more.h", "more.c"):
        with (package / "csrc" / file).open("a") as out:
            out.write("\n")
        names.append(name())
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    names.append(name())
    monkeypatch.setattr(build, "INSTRUCTION_SETS", {platform.machine(): {SET: ("-g",)}})
    names.append(name())
    monkeypatch.setattr(build, "compiler_version", lambda: "gcc 99")
    names.append(name())
    assert len(set(names)) == len(names)
    (package / "csrc" / "notes.txt").touch()
    assert name() == names[-1], "neither a source nor a header"


@needs_compiler
@pytest.mark.usefixtures("cache")
def test_another_compiler_compiles_again_and_none_takes_what_is_there(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = library.find(SET)
    monkeypatch.setattr(build, "compiler_version", lambda: "gcc 99")
    assert library.find(SET) != first
    monkeypatch.setattr(build, "compiler_version", lambda: None)
    assert library.find(SET) in cache.iterdir()
    (package / "csrc" / "simd.h").write_text("enum { LANES = 8 };\n")
    with pytest.raises(RuntimeError, match="no gcc is installed"):
        library.find(SET)


@needs_compiler
def test_what_a_wheel_brings_needs_neither_compiler_nor_cache(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = build.compile_into(package, SET)
    (package.parents[1] / "pyproject.toml").unlink()
    monkeypatch.setattr(build, "COMPILER", "no-such-compiler")
    assert load() is not None
    assert library.find(SET) == packaged
    assert not cache.exists()


def test_an_installed_package_never_compiles(package: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (package.parents[1] / "pyproject.toml").unlink()
    assert load() is None
    assert [record.getMessage() for record in caplog.records] == [
        "compiled kernels unavailable; using the slower PyTorch path: "
        "this installation was built without them, where no compiler was found"
    ]
    assert not cache.exists()


@pytest.mark.usefixtures("package")
def test_without_a_compiler_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "COMPILER", "no-such-compiler")
    assert load() is None
    assert [record.getMessage() for record in caplog.records] == [
        "compiled kernels unavailable; using the slower PyTorch path: no no-such-compiler is installed"
    ]


@pytest.mark.parametrize("other", ["processor", "platform"])
def test_another_processor_or_platform_is_not_asked_to_run_it(
    other: str, package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (package / build.library_name("gcc 99", SET)).write_bytes(b"not for this machine")
    if other == "processor":
        monkeypatch.setattr(library, "instruction_set", lambda: None)
    else:
        monkeypatch.setattr(build, "SYSTEM", "Darwin")
    with caplog.at_level(logging.INFO):
        assert load() is None
    assert [record.getMessage() for record in caplog.records] == [
        "compiled kernels need Linux on a processor with AVX2 or NEON; using the slower PyTorch path"
    ]
    assert not cache.exists()


@pytest.mark.parametrize(
    ("machine", "capability", "others", "expected"),
    [
        ("x86_64", "AVX512", {"f16c", "avx512_vnni", "avx512_bf16", "amx_bf16"}, "avx512_amx"),
        ("x86_64", "AVX512", {"f16c", "avx512_vnni", "amx_bf16"}, "avx512_vnni"),
        ("x86_64", "AVX512", {"f16c", "avx512_vnni"}, "avx512_vnni"),
        ("x86_64", "AVX512", {"f16c"}, "avx512"),
        ("x86_64", "AVX2", {"f16c", "avx512_vnni"}, "avx2"),
        ("x86_64", "AVX2", set(), None),
        ("x86_64", "DEFAULT", {"f16c"}, None),
        ("aarch64", "DEFAULT", set(), "neon"),
        ("aarch64", "SVE256", set(), "neon"),
        ("riscv64", "DEFAULT", set(), None),
    ],
)
def test_the_best_instruction_set_of_the_processor(
    machine: str, capability: str, others: set[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(others, True))
    assert library.instruction_set() == expected


@needs_compiler
def test_processes_that_compile_at_the_same_time_make_the_same_file(package: Path) -> None:
    folder = package / "made"
    folder.mkdir()
    with ThreadPoolExecutor(3) as pool:
        made = set(pool.map(build.compile_into, [folder] * 3, [SET] * 3))
    assert [*folder.iterdir()] == [*made]


@needs_compiler
@pytest.mark.skipif(library.instruction_set() is None, reason="another processor")
@pytest.mark.skipif(not TORCH_OPENMP.exists(), reason="builds for CUDA name OpenMP otherwise; there a GPU computes")
def test_torch_and_the_kernels_share_one_team_of_threads() -> None:
    script = "from shared.kernels import library; assert library.load(); print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len({line.split()[-1] for line in done.stdout.splitlines() if "libgomp" in line}) == 1


@pytest.mark.usefixtures("package")
def test_code_that_others_could_have_planted_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    cached = cache / build.library_name("gcc 99", SET)
    cached.write_bytes(b"")
    cached.chmod(0o700)
    cache.chmod(0o700)
    monkeypatch.setattr(build, "compiler_version", lambda: "gcc 99")
    monkeypatch.setattr(build, "compile_into", lambda folder, instruction_set: folder / "compiled again")
    assert library.find(SET) == cached
    cached.chmod(0o777)
    assert library.find(SET) == cache / "compiled again"
    cached.chmod(0o700)
    cache.chmod(0o777)
    with pytest.raises(RuntimeError, match="other users can write to"):
        library.find(SET)


@pytest.mark.usefixtures("package")
def test_nothing_is_compiled_into_a_folder_that_others_write_to(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert load() is None
    assert "other users can write to" in caplog.text
    assert not [*cache.iterdir()]


@needs_compiler
def test_a_source_that_does_not_compile_is_reported(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    (package / "csrc" / "answer.c").write_text("int linear(")
    with pytest.raises(RuntimeError, match=r"gcc failed: .*answer\.c.*error"):
        build.compile_into(package, SET)
    assert [path.name for path in package.iterdir()] == ["csrc"]
    assert load() is None
    assert "gcc failed" in caplog.text


def test_every_exported_function_is_declared_with_all_its_arguments() -> None:
    defined = dict[str, int]()
    for source in build.SOURCES.glob("*.c"):
        for name, parameters in re.findall(r"^(?:int|void) (\w+)\(([^)]*)\) \{", source.read_text(), re.M):
            defined[name] = parameters.count(",") + 1
    assert {name: len(arguments) for name, (_, arguments) in library.SIGNATURES.items()} == defined


def test_building_needs_nothing_but_the_standard_library() -> None:
    script = "import sys; before = set(sys.modules); import build\n"
    script += "print(*{n.partition('.')[0] for n in set(sys.modules) - before})"
    environment = os.environ | {"PYTHONPATH": str(Path(build.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert set(done.stdout.split()) - {"build"} <= sys.stdlib_module_names
