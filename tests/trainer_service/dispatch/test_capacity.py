"""The number of jobs that fit on a worker, estimated from its measured memory."""

from __future__ import annotations

from trainer_service.dispatch.capacity import Capacity

GIB = 1 << 30


def test_nothing_is_known_before_jobs_were_seen() -> None:
    capacity = Capacity()
    assert capacity.max_jobs() is None
    capacity.observe(0, 2 * GIB, 10 * GIB)
    assert capacity.max_jobs() is None


def test_what_the_first_jobs_added_is_put_down_to_them() -> None:
    capacity = Capacity()
    capacity.observe(0, 2 * GIB, 10 * GIB)
    capacity.observe(1, 4 * GIB, 10 * GIB)
    assert capacity.max_jobs() == 3, "nine tenths of ten, less the model's two, by two each"


def test_what_one_more_job_adds_counts_once_it_was_seen() -> None:
    capacity = Capacity()
    for num_jobs, used in ((0, 2), (1, 4), (2, 4.5)):
        capacity.observe(num_jobs, int(used * GIB), 10 * GIB)
    assert capacity.max_jobs() == 11
    capacity.observe(2, 6 * GIB, 10 * GIB)
    assert capacity.max_jobs() == 3, "the most that was seen counts"


def test_one_job_is_always_tried_and_a_full_worker_takes_none() -> None:
    capacity = Capacity()
    capacity.observe(0, 9 * GIB, 10 * GIB)
    capacity.observe(3, 12 * GIB, 10 * GIB)
    assert capacity.max_jobs() == 1


def test_memory_that_does_not_grow_is_no_limit() -> None:
    capacity = Capacity()
    capacity.observe(0, 4 * GIB, 10 * GIB)
    capacity.observe(2, 4 * GIB, 10 * GIB)
    assert capacity.max_jobs() is None
