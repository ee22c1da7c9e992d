"""What tests of alerts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.k8s.alert_faults import maker
from trainer_service import server
from trainer_service.maintenance import storage_usage


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(storage_usage, "MEASURE_SECONDS", 0.02)


@pytest.fixture
def faults(tiny_model_dir: Path, tmp_path: Path, quick_checks: None) -> Any:
    """As `alert_faults.maker`, with services that check themselves often."""
    return maker(tiny_model_dir, tmp_path)
