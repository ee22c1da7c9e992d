"""The checks can fail: each of the seeded faults is caught by the check that is there for it."""

from __future__ import annotations

import pytest

from tests.k8s.checks import ALL, problems
from tests.k8s.faults import pods, rollouts, surroundings
from tests.k8s.manifests import render

FAULTS = pods.FAULTS | rollouts.FAULTS | surroundings.FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_caught(name: str) -> None:
    overlay, check, fault = FAULTS[name]
    manifests = render(overlay)
    fault(manifests)
    assert check in problems(manifests)


def test_every_check_has_faults_to_catch() -> None:
    assert len(FAULTS) == len(pods.FAULTS) + len(rollouts.FAULTS) + len(surroundings.FAULTS)
    assert {check for _, check, _ in FAULTS.values()} == ALL.keys()
