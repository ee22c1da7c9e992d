"""`softprompt usage`: who used what, as a table or CSV, and the state of budgets."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import print_json, show, table
from softprompt.report.data import guarded
from softprompt.report.words import amount

if TYPE_CHECKING:
    from shared.values.usage import BudgetStatus, UsageRow

app = typer.Typer()

_SUMS = (
    ("requests", "REQUESTS"),
    ("input_tokens", "IN"),
    ("virtual_tokens", "VIRTUAL"),
    ("cached_tokens", "CACHED"),
    ("generated_tokens", "OUT"),
    ("jobs", "JOBS"),
    ("worker_seconds", "WORKER SECONDS"),
    ("stored_bytes", "STORED BYTES"),
)
_BY = ("hour", "tenant", "caller", "prompt", "version", "model")


@app.command(epilog=example("softprompt usage --from 2030-01-01 --by tenant --by hour --csv"))
def usage(
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="First hour, as 2030-01-31 or 2030-01-31T12:00, UTC.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="End of the last hour [now].")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="|".join(_BY), help="A row for each of these; may be repeated."),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Only this tenant.", show_default=False)] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with all columns.")] = False,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Show the usage of generations and tuning jobs, by default of the last 30 days by tenant, and the budgets.

    Administrators see all tenants, others their own.
    """
    from softprompt.errors import InvalidInput

    if as_csv and as_json:
        raise InvalidInput.of("--csv", "can't be combined with --json")
    names = by or ["tenant"]
    if unknown := next((name for name in names if name not in _BY), None):
        raise InvalidInput.of("--by", f"{unknown!r} is not one of {', '.join(_BY)}")
    columns = ["base_model" if name == "model" else name for name in names]
    first, last = _time("--from", start), _time("--to", end)
    with open_client(trainer) as client:
        found = client.list_usage(columns, start=first, end=last, tenant=tenant)
        budgets = [] if as_csv or as_json else client.list_budgets(tenant)
    if as_csv:
        _print_csv(found, columns)
    elif as_json:
        print_json(*found)
    else:
        _show(found, names, columns, budgets)


def _show(found: list[UsageRow], names: list[str], columns: list[str], budgets: list[BudgetStatus]) -> None:
    if not found:
        show("no usage in this time")
    else:
        made = table(*map(str.upper, names), *(title for _, title in _SUMS))
        for row in found:
            values = [_text(row, name) for name in columns]
            made.add_row(*(value or "-" for value in values), *(_text(row, name) for name, _ in _SUMS))
        show(made)
    if budgets:
        show("")
        made = table("TENANT", "BUDGET", "USED", "LIMIT", "OF", "RESETS (UTC)", "WHEN USED UP")
        for budget in budgets:
            resets = budget.reset_time.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if budget.reset_time else ""
            effect = "refuses" if budget.is_hard else "alerts"
            state = f"used up, {effect}" if budget.is_used_up else effect
            percent = round(100 * budget.used / budget.limit)
            percent = max(percent, 100) if budget.is_used_up else min(percent, 99)
            amounts = f"{amount(budget.used)} ({percent}%)", amount(budget.limit)
            made.add_row(budget.tenant, budget.name, *amounts, f"{budget.of} a {budget.per}", resets, state)
        show(made)


def _print_csv(found: list[UsageRow], columns: list[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    sums = [name for name, _ in _SUMS]
    writer.writerow([*columns, *sums])
    for row in found:
        writer.writerow([*(guarded(_text(row, name)) for name in columns), *(_text(row, name) for name in sums)])


def _text(row: UsageRow, name: str) -> str:
    value: Any = getattr(row, name)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _time(option: str, text: str | None) -> datetime | None:
    from softprompt.errors import InvalidInput

    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidInput.of(option, f"{text!r} is not a time such as 2030-01-31 or 2030-01-31T12:00") from None
