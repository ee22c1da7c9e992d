"""The callers file of docs/security.md: the services read it and accept its tokens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from shared.caller import Role
from shared.security.callers_file import CallersFile
from shared.security.tokens import hash_token

ROOT = Path(__file__).parents[3]


def test_two_tenants_on_one_machine(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "security.md").read_text().partition("### Two tenants on one machine")[2]
    script = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].replace("\nsoftprompt up\n", "\n")
    assert "softprompt up" not in script
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    directory = CallersFile(tmp_path / "callers.json").directory
    tuner, operator = (
        directory.by_token(hash_token((tmp_path / f"{name}.token").read_text().strip()))
        for name in ("shop-tuner", "operator")
    )
    assert tuner is not None
    assert operator is not None
    assert tuner.tenant.dataset_roots == ("/data/shop",)
    assert tuner.has_role(Role.PUBLISHER)
    assert not tuner.has_role(Role.GENERATOR)
    assert operator.has_role(Role.GENERATOR)
    assert directory.num_callers == 5
    assert {"support", "shop"} <= directory.tenants.keys()
