"""The scheduler's choices in one round and over many rounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_service.dispatch.scheduler import Claim, Plan, WorkerView, plan
from trainer_service.dispatch.worker_targets import WorkerLimits
from trainer_service.jobs.config import retry_delay_seconds
from trainer_service.jobs.fair_queue import QueueHead

LIMITS = {"max_workers": 2, "max_jobs_per_worker": 4, "idle_seconds": 10.0}


def round_of(heads: list[QueueHead], workers: list[WorkerView], **changes: object) -> Plan:
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
    """Both workers are busy with `a`, more `a` keeps coming, and the oldest waiting job is a `b`: one worker takes
    nothing new.
    """
    workers = [worker("w1", "a", 3), worker("w2", "a", 1)]
    decided = round_of([QueueHead("b", 1.0, 1), QueueHead("a", 2.0, 9)], workers)
    assert decided.claims == (Claim("w1", "a", 1),)
    assert decided.launches == ()
    younger = round_of([QueueHead("a", 1.0, 9), QueueHead("b", 2.0, 1)], workers)
    assert younger.claims == decided.claims, "a small backlog has a worker's worth of the pool, also if it is younger"


def test_a_job_that_must_be_alone_gets_an_unused_worker() -> None:
    head = QueueHead("a", 1.0, 1, exclusive=True)
    assert round_of([head], [worker("w", num_jobs=1)]) == Plan(launches=("a",))
    assert round_of([head], [worker("w", num_jobs=1)], max_workers=1) == Plan(), "it waits until the only one is free"
    assert round_of([head], [worker("w")], max_workers=1) == Plan(launches=("a",), stops=("w",))
    assert round_of([head], [worker("w", ready=False, fresh=True)]) == Plan()
    assert round_of([head], [worker("w", fresh=True)], max_workers=1).claims == (Claim("w", "a", 1, exclusive=True),)
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


def test_a_job_that_must_be_alone_does_not_stop_the_others() -> None:
    workers = [worker(f"w{number:02}", num_jobs=1) for number in range(30)]
    heads = [QueueHead("a", 0.0, 100), QueueHead("a", 0.0, 1, exclusive=True)]
    decided = round_of(heads, workers, max_workers=30, max_jobs_per_worker=8)
    assert sum(claim.max_jobs for claim in decided.claims) == 100
    used = {claim.worker_id for claim in decided.claims}
    assert "w00" not in used, "the emptiest makes way for the one that must be alone"
    drained = [replace(view, num_jobs=0) if view.id == "w00" else view for view in workers]
    handed_over = round_of([QueueHead("a", 0.0, 1, exclusive=True)], drained, max_workers=30, max_jobs_per_worker=8)
    assert (handed_over.stops, handed_over.launches) == (("w00",), ("a",))
    fresh = [worker("new", fresh=True), *workers[1:]]
    both = round_of(
        [QueueHead("a", 0.0, 1, exclusive=True), QueueHead("a", 1.0, 4)], fresh, max_workers=30, max_jobs_per_worker=8
    )
    assert Claim("new", "a", 1, exclusive=True) in both.claims
    assert sum(claim.max_jobs for claim in both.claims if not claim.exclusive) == 4
    assert [claim.worker_id for claim in both.claims].count("new") == 1


def test_workers_of_a_small_backlog_go_to_the_large_one() -> None:
    """29 of 30 workers hold `a` with a job each, 5,000 older jobs wait for `b`, and one fresh one for `a`."""
    heads = [QueueHead("b", 0.0, 5000), QueueHead("a", 3600.0, 1)]
    busy = [worker(f"a{number:02}", "a", 1) for number in range(29)] + [worker("b", "b", 8)]
    decided = round_of(heads, busy, max_workers=30, max_jobs_per_worker=8)
    assert len(decided.claims) == 1
    emptied = [
        replace(view, num_jobs=0) if view.base_model == "a" and view.id != decided.claims[0].worker_id else view
        for view in busy
    ]
    handed_over = round_of(heads, emptied, max_workers=30, max_jobs_per_worker=8)
    assert handed_over.launches == ("b",) * 28
    assert all(id.startswith("a") for id in handed_over.stops)
    assert [claim.base_model for claim in handed_over.claims] == ["a"]


def test_idle_workers_are_handed_over_at_once() -> None:
    idle = [
        worker(f"a{number:02}", "a", idle_seconds=1.0, load_seconds=60.0, ready_seconds=1.0) for number in range(29)
    ]
    decided = round_of([QueueHead("b", 0.0, 5000)], [*idle, worker("b", "b", 8)], max_workers=30, max_jobs_per_worker=8)
    assert decided.launches == ("b",) * 29


def test_a_cold_start_divides_the_workers() -> None:
    heads = [QueueHead("a", 0.0, 240), *(QueueHead(f"m{number}", 1.0 + number, 10) for number in range(9))]
    launches = round_of(heads, [], max_workers=30, max_jobs_per_worker=8).launches
    assert len(launches) == 30
    assert launches.count("a") == 21
    assert {launches.count(f"m{number}") for number in range(9)} == {1}


def test_tenants_weights_divide_the_workers_between_base_models() -> None:
    heads = [QueueHead("a", 0.0, 5000, tenant="large"), QueueHead("b", 50.0, 800, tenant="small", weight=2.0)]
    launches = round_of(heads, [], max_workers=30, max_jobs_per_worker=8).launches
    assert (launches.count("a"), launches.count("b")) == (10, 20), "by weight, however many jobs each has"


def test_an_older_backlog_weighs_more_and_a_new_one_still_counts() -> None:
    heads = [QueueHead("old", 0.0, 1000), QueueHead("new", 1800.0, 1000)]
    launches = round_of(heads, [], max_workers=20, max_jobs_per_worker=8).launches
    assert (launches.count("old"), launches.count("new")) == (16, 4)


def test_a_tenant_that_is_behind_gets_the_only_worker() -> None:
    """One tenant's 5,000 older jobs of another base model are not served first, because its start tag counts its past
    service.
    """
    heads = [QueueHead("a", 0.0, 5000, tenant="many", start=500.0), QueueHead("b", 90.0, 1, tenant="one")]
    busy = worker("w", "a", 3)
    assert round_of(heads, [busy], max_workers=1) == Plan(), "it takes nothing new"
    decided = round_of(heads, [replace(busy, num_jobs=0)], max_workers=1)
    assert (decided.stops, decided.launches) == (("w",), ("b",))


def test_a_worker_that_has_just_loaded_its_model_keeps_it_for_a_while() -> None:
    heads = [QueueHead("b", 0.0, 8), QueueHead("a", 1.0, 8)]
    new = worker("w", "a", 1, load_seconds=10.0, ready_seconds=29.0)
    assert round_of(heads, [new], max_workers=1).claims == (Claim("w", "a", 3),)
    assert round_of(heads, [replace(new, ready_seconds=30.0)], max_workers=1) == Plan()


def test_a_base_model_has_no_more_workers_than_its_own_limit() -> None:
    heads = [QueueHead("a", 0.0, 100), QueueHead("b", 1.0, 100)]
    limits = {"a": WorkerLimits(most=2), "b": WorkerLimits(most=9)}
    decided = round_of(heads, [], max_workers=10, limits=limits)
    assert Counter(decided.launches) == {"a": 2, "b": 8}, "what one may not have, the other gets"
    workers = [worker("a1", "a", 4), worker("a2", "a", 4, ready=False)]
    assert "a" not in round_of(heads, workers, max_workers=10, limits=limits).launches
    over = [worker("a1", "a", 4), worker("a2", "a"), worker("a3", "a", 1)]
    assert round_of([], over, max_workers=10, limits={"a": WorkerLimits(most=2)}).stops == ("a2",)
    fewer = round_of(heads, over, max_workers=10, limits={"a": WorkerLimits(most=1)})
    assert fewer.stops == ("a2",)
    assert not [claim for claim in fewer.claims if claim.base_model == "a"], "the third works, and takes nothing new"


def test_a_full_base_model_gives_one_of_its_own_workers_to_the_job_that_must_be_alone() -> None:
    head, limits = QueueHead("a", 1.0, 1, exclusive=True), {"a": WorkerLimits(most=1)}
    idle = worker("w", "a")
    decided = round_of([head], [idle, worker("o", "b", ready_seconds=99.0)], max_workers=2, limits=limits)
    assert (decided.stops, decided.launches) == (("w",), ("a",)), "not the other's, with which it would have two"
    busy = replace(idle, num_jobs=1)
    assert round_of([head, QueueHead("a", 2.0, 3)], [busy], max_workers=2, limits=limits) == Plan(), "it takes no more"


def test_workers_are_kept_without_jobs_and_no_other_base_model_gets_them() -> None:
    limits = {"a": WorkerLimits(least=2)}
    assert round_of([], [], max_workers=3, limits=limits).launches == ("a", "a")
    kept = [worker("w1", "a", idle_seconds=99.0), worker("w2", "a", idle_seconds=50.0)]
    assert round_of([], kept, max_workers=3, limits=limits) == Plan()
    assert round_of([], [*kept, worker("w3", "a", idle_seconds=20.0)], max_workers=3, limits=limits).stops == ("w1",)
    many = [QueueHead("b", 0.0, 100), QueueHead("c", 0.0, 100)]
    decided = round_of(many, kept, max_workers=3, limits=limits)
    assert (decided.stops, decided.launches) == ((), ("b",))
    started = round_of(many, [], max_workers=3, limits=limits).launches
    assert Counter(started) == {"a": 2, "b": 1}
    assert round_of([], [worker("o", "b", 1)], max_workers=1, limits=limits) == Plan(), "never more than all may be"


def test_a_backlog_uses_the_workers_that_its_base_model_keeps() -> None:
    heads = [QueueHead("b", 0.0, 1000), QueueHead("a", 50.0, 8)]
    launches = round_of(heads, [], max_workers=10, limits={"a": WorkerLimits(least=3)}).launches
    assert Counter(launches) == {"a": 3, "b": 7}


heads = st.lists(
    st.builds(
        QueueHead,
        st.sampled_from("abc"),
        st.floats(0, 100),
        st.integers(1, 20),
        exclusive=st.booleans(),
        tenant=st.sampled_from("xyz"),
        weight=st.sampled_from([0.5, 1.0, 4.0]),
        start=st.floats(0, 1000),
    ),
    unique_by=lambda head: (head.base_model, head.tenant, head.exclusive),
)
used = st.builds(
    WorkerView,
    st.uuids().map(str),
    st.sampled_from("abcd"),
    st.integers(0, 4),
    st.booleans(),
    st.floats(0, 20),
    load_seconds=st.floats(0, 9),
)
unused = st.builds(
    WorkerView, st.uuids().map(str), st.sampled_from("abcd"), st.just(0), st.booleans(), fresh=st.just(True)
)
views = st.lists(used | unused, max_size=5)


limits = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(st.integers(0, 2), st.none() | st.integers(2, 4)).map(lambda pair: WorkerLimits(*pair)),
)


@given(heads, views, st.integers(1, 6), limits)
def test_no_round_breaks_a_bound(
    heads: list[QueueHead], workers: list[WorkerView], max_workers: int, limits: dict[str, WorkerLimits]
) -> None:
    decided = plan(heads, workers, max_workers=max_workers, max_jobs_per_worker=4, idle_seconds=10.0, limits=limits)
    before = Counter(worker.base_model for worker in workers)
    after = before + Counter(decided.launches)
    after.subtract(worker.base_model for worker in workers if worker.id in decided.stops)
    for base_model, limit in limits.items():
        assert limit.most is None or after[base_model] <= max(before[base_model], limit.most)
        assert after[base_model] >= min(before[base_model], limit.least)
    by_id = {worker.id: worker for worker in workers}
    waiting = Counter[tuple[str, bool]]()
    for head in heads:
        waiting[head.base_model, head.exclusive] += head.num_jobs
    assert len(workers) - len(decided.stops) + len(decided.launches) <= max(max_workers, len(workers))
    assert len({claim.worker_id for claim in decided.claims}) == len(decided.claims)
    for claim in decided.claims:
        assert by_id[claim.worker_id].ready
        assert by_id[claim.worker_id].base_model == claim.base_model
        assert by_id[claim.worker_id].num_jobs + claim.max_jobs <= 4
        assert by_id[claim.worker_id].fresh or not claim.exclusive
        waiting[claim.base_model, claim.exclusive] -= claim.max_jobs
        assert waiting[claim.base_model, claim.exclusive] >= 0
        assert claim.worker_id not in decided.stops
    assert all(by_id[id].num_jobs == 0 for id in decided.stops)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 3),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 2).map(lambda most: WorkerLimits(most=most))),
)
def test_every_job_gets_its_turn(
    jobs: list[tuple[str, float, bool]], max_workers: int, limits: dict[str, WorkerLimits]
) -> None:
    """Executes the plans; one job of each worker ends per round, and all end within a bounded number of rounds."""
    waiting = sorted(jobs, key=lambda job: job[1])
    running: dict[str, list[tuple[str, float, bool]]] = {}
    models: dict[str, str] = {}
    touched = set[str]()
    for number in range(400):
        queues = {
            (model, exclusive): [job for job in waiting if (job[0], job[2]) == (model, exclusive)]
            for model in "abc"
            for exclusive in (False, True)
        }
        heads = [
            QueueHead(model, queue[0][1], len(queue), exclusive)
            for (model, exclusive), queue in queues.items()
            if queue
        ]
        views = [
            WorkerView(
                id,
                models[id],
                len(its),
                True,
                fresh=id not in touched,
                exclusive=any(exclusive for _, _, exclusive in its),
            )
            for id, its in running.items()
        ]
        decided = plan(heads, views, max_workers=max_workers, max_jobs_per_worker=2, idle_seconds=1.0, limits=limits)
        for id in decided.stops:
            del running[id]
        for claim in decided.claims:
            assert not any(exclusive for _, _, exclusive in running[claim.worker_id])
            queue = queues[claim.base_model, claim.exclusive]
            for _ in range(min(claim.max_jobs, len(queue))):
                job = queue.pop(0)
                waiting.remove(job)
                running[claim.worker_id].append(job)
                touched.add(claim.worker_id)
        for place, base_model in enumerate(decided.launches):
            running[f"{number}-{place}"], models[f"{number}-{place}"] = [], base_model
        for its in running.values():
            del its[:1]
        if not waiting and not any(running.values()):
            return
    raise AssertionError(f"{len(waiting)} jobs never ran")
