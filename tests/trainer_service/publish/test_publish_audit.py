"""A version that a job publishes leaves a line in the audit, with the caller who made the job."""

from __future__ import annotations

from shared.caller import Caller, calling
from shared.security import audit
from shared.values.spec import PublishGate, PublishPolicy
from tests.log_lines import log_lines
from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.jobs.states import JobState


async def test_what_jobs_publish_is_audited_and_what_a_gate_keeps_back_is_not(service: Service) -> None:
    manager = await service.start()
    with log_lines(audit.LOGGER) as lines, calling(Caller("shop", frozenset())):
        kept_back = await manager.create(spec(publish=PublishPolicy(gate=PublishGate(minimum_metric=1e-9))))
        refused = await service.state(kept_back.id, JobState.SUCCEEDED)
        job = await manager.create(spec())
        done = await service.state(job.id, JobState.SUCCEEDED)
        await until(lambda: bool(lines))
    assert refused.result is not None
    assert not refused.result.published
    assert done.result is not None
    (line,) = lines
    assert (line["action"], line["result"], line["caller"], line["job"]) == ("publish", "OK", "shop", job.id)
    assert (line["prompt"], line["version"], line["alias"]) == ("tone", done.result.version, "default")
