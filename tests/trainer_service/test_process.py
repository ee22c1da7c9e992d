"""The command of the trainer. tests/trainer_service/cluster/test_service_kill.py has a process that serves."""

from __future__ import annotations

import os
import subprocess
import sys

PREFIX = "SOFTPROMPT_TRAINER_"


def test_bad_settings_end_the_process_with_their_names() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment = clean | {f"{PREFIX}MAX_WORKERS": "none", f"{PREFIX}TYPO": "1"}
    done = subprocess.run([sys.executable, "-m", "trainer_service"], env=environment, capture_output=True, check=False)
    assert done.returncode == 78
    for name in ("BASE_MODELS", "MAX_WORKERS", "TYPO"):
        assert f"{PREFIX}{name}" in done.stderr.decode()


def test_help_names_every_setting() -> None:
    done = subprocess.run([sys.executable, "-m", "trainer_service", "--help"], capture_output=True, check=True)
    assert f"{PREFIX}BASE_MODELS" in done.stdout.decode()
