"""The scheduler's choices, one round at a time, and what they come to over many rounds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from trainer_service.jobs.scheduler import Claim, Plan, QueueHead, WorkerView, plan, retry_delay_seconds

LIMITS = {"max_workers": 2, "max_jobs_per_worker": 4, "idle_seconds": 10.0}


def round_of(heads: list[QueueHead], workers: list[WorkerView], **changes: float) -> Plan:
    return plan(heads, workers, **{**LIMITS, **changes})  # type: ignore[arg-type]


def worker(id: str, base_model: str = "a", num_jobs: int = 0, **changes: object) -> WorkerView:
    return replace(WorkerView(id, base_model, num_jobs, True), **changes)  # type: ignore[arg-type]


def test_nothing_waits_and_nothing_happens() -> None:
    assert round_of([], [worker("w", num_jobs=1)]) == Plan()


def test_the_first_job_starts_a_worker_and_the_next_round_waits_for_it() -> None:
    head = QueueHead("a", 1.0, 3)
    assert round_of([head], []) == Plan(launches=("a",))
    assert round_of([head], [worker("w", ready=False)]) == Plan()
    assert round_of([head], [worker("w")]) == Plan(claims=(Claim("w", "a", 3),))


def test_a_job_goes_where_its_base_model_is() -> None:
    workers = [worker("w1", "a"), worker("w2", "b", 1)]
    assert round_of([QueueHead("b", 1.0, 1)], workers).claims == (Claim("w2", "b", 1),)


def test_workers_are_filled_before_more_are_started() -> None:
    fuller, emptier = worker("w1", num_jobs=3), worker("w2", num_jobs=1)
    decided = round_of([QueueHead("a", 1.0, 10)], [emptier, fuller], max_workers=4)
    assert decided.claims == (Claim("w1", "a", 1), Claim("w2", "a", 3))
    assert decided.launches == ("a", "a")


def test_an_idle_worker_makes_way_for_another_base_model() -> None:
    workers = [worker("w1", "a", 2), worker("w2", "a")]
    decided = round_of([QueueHead("b", 1.0, 1)], workers)
    assert (decided.stops, decided.launches) == (("w2",), ("b",))


def test_the_oldest_job_is_not_starved_by_another_base_model() -> None:
    """Both workers are busy with `a`, more `a` keeps coming, and the oldest waiting job is a `b`: one worker takes nothing new."""
    workers = [worker("w1", "a", 3), worker("w2", "a", 1)]
    decided = round_of([QueueHead("b", 1.0, 1), QueueHead("a", 2.0, 9)], workers)
    assert decided.claims == (Claim("w1", "a", 1),)
    assert decided.launches == ()
    younger = round_of([QueueHead("a", 1.0, 9), QueueHead("b", 2.0, 1)], workers)
    assert {claim.worker_id for claim in younger.claims} == {"w1", "w2"}


def test_a_job_that_must_be_alone_gets_a_worker_that_nobody_used() -> None:
    head = QueueHead("a", 1.0, 5, solo=True)
    assert round_of([head], [worker("w", num_jobs=1)]) == Plan(launches=("a",))
    assert round_of([head], [worker("w", num_jobs=1)], max_workers=1) == Plan(), "it waits until nobody uses the only one"
    assert round_of([head], [worker("w")], max_workers=1) == Plan(launches=("a",), stops=("w",))
    assert round_of([head], [worker("w", ready=False, fresh=True)]) == Plan()
    assert round_of([head], [worker("w", fresh=True)], max_workers=1).claims == (Claim("w", "a", 1),)
    assert round_of([QueueHead("a", 1.0, 5)], [worker("w", num_jobs=1, exclusive=True)], max_workers=1) == Plan()


def test_a_worker_takes_no_more_than_its_memory_holds() -> None:
    small = worker("w", num_jobs=1, max_jobs=2)
    assert round_of([QueueHead("a", 1.0, 3)], [small]) == Plan(claims=(Claim("w", "a", 1),), launches=("a",))
    assert round_of([QueueHead("a", 1.0, 1)], [replace(small, num_jobs=3)], max_workers=1) == Plan()


def test_workers_that_are_idle_for_long_are_stopped_unless_they_are_needed() -> None:
    idle, fresh = worker("w1", idle_seconds=11.0), worker("w2", idle_seconds=9.0)
    assert round_of([], [idle, fresh]).stops == ("w1",)
    assert round_of([QueueHead("a", 1.0, 1)], [idle, fresh]).stops == ()


def test_back_off_doubles_up_to_a_bound() -> None:
    assert [retry_delay_seconds(n, 1, 10) for n in (1, 2, 3, 4, 5, 500)] == [1, 2, 4, 8, 10, 10]


heads = st.lists(
    st.builds(QueueHead, st.sampled_from("abc"), st.floats(0, 100), st.integers(1, 20), solo=st.booleans()),
    unique_by=lambda head: head.base_model,
)
used = st.builds(WorkerView, st.uuids().map(str), st.sampled_from("abcd"), st.integers(0, 4), st.booleans(), st.floats(0, 20))
unused = st.builds(WorkerView, st.uuids().map(str), st.sampled_from("abcd"), st.just(0), st.booleans(), fresh=st.just(True))
views = st.lists(used | unused, max_size=5)


@given(heads, views, st.integers(1, 6))
def test_no_round_breaks_a_bound(heads: list[QueueHead], workers: list[WorkerView], max_workers: int) -> None:
    decided = plan(heads, workers, max_workers=max_workers, max_jobs_per_worker=4, idle_seconds=10.0)
    by_id = {worker.id: worker for worker in workers}
    waiting = {head.base_model: head.num_jobs for head in heads}
    solo = {head.base_model: head.solo for head in heads}
    assert len(workers) - len(decided.stops) + len(decided.launches) <= max(max_workers, len(workers))
    for claim in decided.claims:
        assert by_id[claim.worker_id].ready
        assert by_id[claim.worker_id].base_model == claim.base_model
        assert by_id[claim.worker_id].num_jobs + claim.max_jobs <= 4
        assert by_id[claim.worker_id].fresh or not solo[claim.base_model]
        waiting[claim.base_model] -= claim.max_jobs
        assert waiting[claim.base_model] >= 0
        assert claim.worker_id not in decided.stops
    assert all(by_id[id].num_jobs == 0 for id in decided.stops)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.booleans()), min_size=1, max_size=40), st.integers(1, 3))
def test_every_job_gets_its_turn(jobs: list[tuple[str, float, bool]], max_workers: int) -> None:
    """Carry the plans out, one job of each worker ending a round: all are done within a bounded number of rounds."""
    waiting = sorted(jobs, key=lambda job: job[1])
    running: dict[str, list[tuple[str, float, bool]]] = {}
    models: dict[str, str] = {}
    touched = set[str]()
    for number in range(400):
        queues = {model: [job for job in waiting if job[0] == model] for model in "abc"}
        heads = [QueueHead(model, queue[0][1], len(queue), queue[0][2]) for model, queue in queues.items() if queue]
        views = [
            WorkerView(id, models[id], len(its), True, fresh=id not in touched, exclusive=any(solo for _, _, solo in its))
            for id, its in running.items()
        ]
        decided = plan(heads, views, max_workers=max_workers, max_jobs_per_worker=2, idle_seconds=1.0)
        for id in decided.stops:
            del running[id]
        for claim in decided.claims:
            for _ in range(claim.max_jobs):
                may = [job for job in waiting if job[0] == claim.base_model and (claim.worker_id not in touched or not job[2])]
                if not may or any(solo for _, _, solo in running[claim.worker_id]):
                    break
                waiting.remove(may[0])
                running[claim.worker_id].append(may[0])
                touched.add(claim.worker_id)
        for place, base_model in enumerate(decided.launches):
            running[f"{number}-{place}"], models[f"{number}-{place}"] = [], base_model
        for its in running.values():
            del its[:1]
        if not waiting and not any(running.values()):
            return
    raise AssertionError(f"{len(waiting)} jobs never ran")
