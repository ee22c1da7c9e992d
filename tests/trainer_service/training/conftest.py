"""Settings for hundreds of short trainings."""

from __future__ import annotations

import pytest

from trainer_service.training.evaluation import answers


@pytest.fixture(autouse=True)
def no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs generate no answers for their reports, which would take longer than the training; test_answers.py and
    test_job_report.py test these.
    """
    monkeypatch.setattr(answers, "MIN_BATCHES", 0)
    monkeypatch.setattr(answers, "TEXT_SHARE", 0.0)
