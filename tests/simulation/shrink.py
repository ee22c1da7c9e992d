"""Makes a life that breaks a promise smaller: shorter, with fewer kinds of faults and fewer tenants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.simulation.faults import KINDS
from tests.simulation.life import Plan, live


def shrink(seed: int, plan: Plan) -> Plan:
    """The smallest plan found; `plan` itself if it breaks no promise.

    A smaller plan is another life, because all parts of a life draw from one generator. It counts if it breaks the same
    kind of promise, which the problem's words without names and numbers say.
    """
    wanted = _kinds(seed, plan)
    if not wanted:
        return plan
    while True:
        for smaller in _smaller(plan):
            if _kinds(seed, smaller) & wanted:
                plan = smaller
                break
        else:
            return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    if plan.busy_seconds > 10:
        yield replace(plan, busy_seconds=plan.busy_seconds / 2)
    if plan.num_tenants > 1:
        yield replace(plan, num_tenants=plan.num_tenants - 1)
    for kind in KINDS:
        if kind not in plan.without:
            yield replace(plan, without=(*plan.without, kind))


def _kinds(seed: int, plan: Plan) -> set[str]:
    return {" ".join(word for word in problem.split() if word.isalpha()) for problem in live(seed, plan).problems}
