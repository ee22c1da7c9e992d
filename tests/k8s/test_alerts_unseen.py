"""Each alert was provoked by a test. Runs after test_alerts.py and test_alerts_trainer.py, in the same process."""

from __future__ import annotations

import os

from tests.k8s.alert_faults import SEEN
from tests.k8s.test_rules import ALERTS


def test_every_alert_was_seen_firing() -> None:
    seen = SEEN if os.geteuid() == 0 else SEEN | {"SoftpromptDataDiskFillsUp", "SoftpromptDataDiskFull"}
    assert ALERTS.keys() <= seen or not SEEN, f"no fault provokes {sorted(ALERTS.keys() - seen)}"
