"""Usage for callers, in pages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from shared.caller import Caller, Role, Tenant, current_caller
from shared.errors import InvalidInput, PermissionDenied
from shared.process.call_pool import CallPool
from shared.security.page_tokens import Json, ListScope, PageTokens
from shared.store.usage import HOUR_SECONDS
from shared.values.usage import UsageDimension, UsageFilter, UsagePage, UsageQuery, UsageRow
from trainer_service.usage.budgets import Budgets
from trainer_service.usage.ledger import UsageLedger

_DEFAULT_DAYS = 30


class UsageLists:
    """Administrators see all tenants, others their own and only the prompts that they may use."""

    def __init__(
        self,
        ledger: UsageLedger,
        budgets: Budgets,
        tenants: Callable[[], Mapping[str, Tenant]],
        tokens: PageTokens,
        pool: CallPool,
    ) -> None:
        self._ledger, self._budgets, self._tenants = ledger, budgets, tenants
        self._tokens, self._pool = tokens, pool

    async def page(self, query: UsageQuery, page_size: int) -> UsagePage:
        """A page of the current caller. Raises InvalidInput, PermissionDenied."""
        caller = current_caller()
        filter = _filter(query, caller)
        start = query.start_time.isoformat() if query.start_time else ""
        end = query.end_time.isoformat() if query.end_time else ""
        asked: dict[str, Json] = {"by": [*map(str, filter.by)], "tenant": query.tenant, "start": start, "end": end}
        scope = ListScope("ListUsage", caller, asked)
        cursor = self._tokens.open(query.page_token, scope)
        after = json.loads(cursor) if cursor else ()
        found = await self._pool.call(self._ledger.list, filter, page_size + 1, after)
        token = ""
        if len(found) > page_size:
            token = self._tokens.seal(json.dumps(_key(found[page_size - 1], filter), ensure_ascii=False), scope)
        tenants = {caller.tenant.name: caller.tenant, **self._tenants()} if filter.tenant else self._tenants()
        shown = [tenant for name, tenant in tenants.items() if filter.tenant in (None, name)]
        if caller.is_limited_to_prompts or query.page_token:
            shown = []  # a budget counts prompts that such a caller may not see
        budgets = await self._pool.call(self._budgets.statuses, tuple(shown))
        return UsagePage(tuple(found[:page_size]), token, budgets)


def _filter(query: UsageQuery, caller: Caller) -> UsageFilter:
    end = query.end_time or datetime.now(UTC)
    try:
        start = query.start_time or end - timedelta(days=_DEFAULT_DAYS)
    except OverflowError:
        raise InvalidInput.of("end_time", "is too early: give start_time, too") from None
    if start > end:
        raise InvalidInput.of("start_time", "must not be after end_time")
    if None in query.by or len(set(query.by)) != len(query.by):
        raise InvalidInput.of("by", f"must be different ones of {', '.join(UsageDimension)}")
    tenant = query.tenant or None
    if not caller.has_role(Role.ADMIN):
        if tenant not in (None, caller.tenant.name):
            raise PermissionDenied("only administrators see the usage of other tenants", caller=caller.name)
        tenant = caller.tenant.name
    first = int(start.timestamp()) // HOUR_SECONDS * HOUR_SECONDS
    last = math.ceil(end.timestamp() / HOUR_SECONDS) * HOUR_SECONDS
    return UsageFilter(first, last, query.by, tenant, caller.prompts)


def _key(row: UsageRow, filter: UsageFilter) -> list[str | int]:
    values = {dimension: getattr(row, dimension.value.lower()) for dimension in filter.by}
    return [int(value.timestamp()) if isinstance(value, datetime) else value for value in values.values()]
