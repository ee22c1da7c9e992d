"""Usage by tenants, callers, prompts and hours, and budgets: plain frozen dataclasses."""

from __future__ import annotations

from shared.values.usage import BudgetStatus as BudgetStatus
from shared.values.usage import UsageDimension as UsageDimension
from shared.values.usage import UsagePage as UsagePage
from shared.values.usage import UsageQuery as UsageQuery
from shared.values.usage import UsageRow as UsageRow
