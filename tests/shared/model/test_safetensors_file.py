"""Files whose content doesn't match their name are refused with a readable reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from shared.model.safetensors_file import complaint, complaint_about

SOUND = save({"a": torch.zeros(3, 4), "b": torch.ones(5)}, {"format": "pt"})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (SOUND, ""),
        (b"", "it is empty"),
        (
            SOUND[:5],
            f"it is cut short: 5 bytes are there, and its header alone has {int.from_bytes(SOUND[:5], 'little') + 8}",
        ),
        (SOUND[:100], "it is cut short: 100 bytes are there, and its header alone has"),
        (SOUND[:-7], f"it is cut short: {len(SOUND) - 7} of {len(SOUND)} bytes are there"),
        (SOUND + b"xyz", "it has 3 bytes too many"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "it does not begin as a safetensors file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
            "it is the pointer that Git LFS leaves",
        ),
        (bytes(64), "it does not begin as a safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", ""),
        ((6).to_bytes(8, "little") + b"{a: 1}", "its header can't be read"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "its header can't be read"),
    ],
)
def test_what_is_wrong_is_said_without_absurd_numbers(data: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    found = complaint_about(file)
    assert found == complaint(data, len(data))
    assert found.startswith(words)
    assert bool(found) == bool(words)
