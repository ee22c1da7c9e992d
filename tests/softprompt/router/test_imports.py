"""The router needs no torch: it starts in about a second, in a quarter of the memory."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["softprompt.router.server", "softprompt.client.routed_channel"])
def test_what_follows_a_store_imports_no_torch(module: str) -> None:
    check = f"import sys, {module}; print(*{{'torch', 'transformers', 'ray'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
