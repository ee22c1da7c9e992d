"""Every instruction set computes the same: AVX-512, AVX2, and NEON under an emulator.

The other tests of this folder compare the library of this processor with PyTorch. Here, one program that calls every
kernel runs with the library of each instruction set. Sums in a fixed order have the same bits everywhere; kernels whose
sums depend on the width of a vector (`near_` in the output) agree within rounding, and what follows from several of
them (`far_`) in most of its bits.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.kernels import build, library

PROGRAM = Path(__file__).with_name("every_kernel.c")
INCLUDE = f"-I{build.SOURCES}"
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
AVX512 = ("avx512", "avx512_vnni", "avx512_amx")
Results = dict[str, torch.Tensor]


def compiled_and_run(folder: Path, machine: str, instruction_set: str) -> Results:
    """The results of the program: with the library of one of this machine's instruction sets, which is compiled once
    for all tests and processes, or compiled as the library is, but with all it needs in one file, for the emulator.
    """
    native = machine == platform.machine()
    options = [*build.FLAGS, *build.INSTRUCTION_SETS[machine][instruction_set], "-w"]
    flags = [option for option in options if option not in ("-shared", "-fPIC")]
    if native:
        kernels = ["-DLIBRARY", str(library.find(instruction_set))]
    else:
        kernels = ["-static", *sorted(map(str, build.SOURCES.glob("*.c")))]
    target, compiler = folder / instruction_set, build.COMPILER if native else CROSS_COMPILER
    command = [compiler, *flags, INCLUDE, str(PROGRAM), *kernels, "-o", str(target), "-lm"]
    subprocess.run(command, capture_output=True, check=True)
    program = [str(target)] if native else [EMULATOR, str(target)]
    lines = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: _floats(numbers) for name, *numbers in map(str.split, lines)}


def _floats(numbers: list[str]) -> torch.Tensor:
    return torch.frombuffer(bytearray(b"".join(bytes.fromhex(number)[::-1] for number in numbers)), dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of the library of this processor; without tiles, which add in another order."""
    name = library.instruction_set()
    name = "avx512_vnni" if name == "avx512_amx" else name
    if name is None or shutil.which(build.COMPILER) is None:
        pytest.skip("no compiled kernels on this machine")
    return compiled_and_run(tmp_path_factory.mktemp("native"), platform.machine(), name)


def compare(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert numbers.isfinite().all(), name
        assert numbers.norm() > 0.1, name
        if name.startswith("far_"):
            assert (found[name] - numbers).norm() < 0.01 * numbers.norm(), name
        elif name.startswith("near_"):  # a result that is rounded to bfloat16 may be rounded the other way
            tolerance = 2**-7 if found[name].bfloat16().float().equal(found[name]) else 1e-5
            torch.testing.assert_close(found[name], numbers, rtol=tolerance, atol=1e-5, msg=name)
        else:
            assert found[name].equal(numbers), name


def test_avx2_computes_the_same(expected: Results, tmp_path: Path) -> None:
    if library.instruction_set() not in AVX512:
        pytest.skip("this processor's own kernels are compared with PyTorch")
    compare(compiled_and_run(tmp_path, "x86_64", "avx2"), expected)


def test_tiles_compute_the_same_within_rounding(expected: Results, tmp_path: Path) -> None:
    if library.instruction_set() != "avx512_amx":
        pytest.skip("this processor has no AMX tiles")
    found = compiled_and_run(tmp_path, "x86_64", "avx512_amx")
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        if name.startswith("quantised"):  # the same bytes are other codes: blocks for tiles have a layout of their own
            continue
        assert (found[name] - numbers).norm() < 0.01 * numbers.norm(), name


def test_neon_computes_the_same(expected: Results, tmp_path: Path) -> None:
    if missing := [tool for tool in (CROSS_COMPILER, EMULATOR) if shutil.which(tool) is None]:
        pytest.skip(f"{missing[0]} is missing; `make tools` installs it")
    compare(compiled_and_run(tmp_path, "aarch64", "neon"), expected)


def test_sanitizers_find_nothing(expected: Results, tmp_path: Path) -> None:
    """No access outside of memory, and nothing undefined, in the library of this processor."""
    name, target = library.instruction_set(), tmp_path / "sanitized"
    assert name is not None
    options = build.INSTRUCTION_SETS[platform.machine()][name]
    flags = [flag for flag in build.FLAGS if flag not in ("-O3", "-shared", "-fPIC")]
    checks = ("-O0", "-g", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    sources = sorted(map(str, build.SOURCES.glob("*.c")))
    command = [build.COMPILER, *flags, *options, *checks, INCLUDE, *sources, str(PROGRAM), "-o", str(target), "-lm"]
    subprocess.run(command, capture_output=True, check=True)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # the program never frees its operands
    done = subprocess.run([str(target)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(expected)


@pytest.mark.skipif(library.instruction_set() not in AVX512, reason="this processor has one instruction set only")
def test_a_processor_without_avx512_serves_in_bfloat16_by_avx2() -> None:
    """The variables of torch and oneDNN hide AVX-512 from them and from us."""
    script = (
        "import torch; from torch import nn; from shared.kernels import library, serving_linear as linears\n"
        "from shared.model.base_model import pick_dtype\n"
        "dtype = pick_dtype('auto', torch.device('cpu'))\n"
        "swap = linears.choose_linear(dtype)\n"
        "fine, odd = (nn.Linear(size, 16, bias=False, dtype=dtype) for size in (32, 33))\n"
        "nn.init.constant_(odd.weight, 1e30)\n"
        "with torch.no_grad():\n"
        "    assert swap(odd)(torch.ones(3, 33, dtype=dtype)).isfinite().all()\n"
        "    same = torch.allclose(swap(fine)(torch.eye(32, dtype=dtype)).T, fine.weight, rtol=2**-8)\n"
        "print(library.instruction_set(), dtype, linears.OneDNNLinear.is_available(dtype), same)\n"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["avx2", "torch.bfloat16", "False", "True"], done.stderr
