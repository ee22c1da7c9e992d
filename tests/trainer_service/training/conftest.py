"""Hundreds of short trainings."""

from __future__ import annotations

import pytest

from trainer_service.training.evaluation import answers


@pytest.fixture(autouse=True)
def no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs write no texts for their reports, which would take longer than their training; test_answers.py and
    test_job_report.py look at those.
    """
    monkeypatch.setattr(answers, "MIN_BATCHES", 0)
    monkeypatch.setattr(answers, "TEXT_SHARE", 0.0)
