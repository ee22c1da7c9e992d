"""Retention writes a line with the version numbers to the audit, and none if it deletes nothing."""

from __future__ import annotations

from shared.security import audit
from shared.store import PromptStore
from shared.store.maintenance import MaintenancePolicy, maintain
from tests.log_lines import log_lines
from tests.shared.prompt.blobs import make_blob


def test_what_retention_deletes_is_audited(local_store: PromptStore) -> None:
    for number in range(4):
        local_store.publish("tone", make_blob("tone", number), job=f"job-{number}")
    policy = MaintenancePolicy(keep_versions=1)
    with log_lines(audit.LOGGER) as lines:
        maintain(local_store, policy)
        maintain(local_store, policy)
    (line,) = lines
    assert (line["action"], line["result"], line["caller"], line["prompt"]) == (
        "retention",
        "OK",
        "maintenance",
        "tone",
    )
    assert line["versions"] == [1, 2, 3]
    assert [*local_store.refresh().prompt("tone").versions] == [4]
