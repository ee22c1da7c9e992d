"""`softprompt retrain`: move prompts to another base model, after a look at what would be trained."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from shared.text.counted import counted
from softprompt.cli.failures import EXIT_INVALID, EXIT_REFUSED, Failure
from softprompt.cli.options import JsonOption, TrainerOption, YesOption, example, open_client
from softprompt.cli.output import agreed, print_json, show, stderr, table
from softprompt.display.status import clock_text

if TYPE_CHECKING:
    from softprompt.client.retraining_plan import PlannedRetraining, RetrainingPlan

app = typer.Typer()


@app.command(epilog=example("softprompt retrain --base-model qwen3 --prompt support-tone --dry-run"))
def retrain(
    *,
    base_model: Annotated[str, typer.Option(help="Id of the new base model, one of the trainer's.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Retrain only this prompt; may be repeated. Default: all with an alias.")
    ] = None,
    keep_aliases: Annotated[
        bool,
        typer.Option(
            "--keep-aliases", help="Move no alias: the jobs need not beat the old versions, only the bare model."
        ),
    ] = False,
    unserved: Annotated[
        bool,
        typer.Option("--unserved", help="End with 0 also if no live replica has the new base model: one comes later."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and create no jobs.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Train the prompts that aliases name again, on another base model, from their kept data and settings.

    First shows a plan. A job moves its alias only if the new prompt beats the old version. Without a terminal and
    --yes, only the plan is shown. A second call continues an interrupted one: no prompt is trained twice. Ends with 4
    if a prompt can't be retrained, or if an alias can move to a version that no live replica serves.
    """
    if dry_run and yes:
        raise Failure("--dry-run and --yes exclude each other", EXIT_INVALID)
    with open_client(trainer) as client:
        plan = client.plan_retraining(base_model, prompt or (), keep_aliases=keep_aliases)
        if not as_json:
            _show(plan)
        if lacks := _lacks_replicas(plan):
            stderr().print(lacks, style="yellow", markup=False)
        num_new = sum(item.is_new for item in plan.prompts)
        made = plan.prompts
        if num_new and (yes or (not dry_run and _agrees(num_new, plan.base_model.id))):
            made = tuple(client.retrain(plan))
            if not as_json:
                _show_created(plan.prompts, made)
    if as_json:
        print_json(*({**_described(item), "num_replicas": plan.num_replicas} for item in made))
    if refused := sum(bool(item.refused) for item in made):
        raise Failure(f"{counted(refused, 'prompt')} can't be retrained", EXIT_REFUSED, _hint(made))
    if lacks and not unserved and made is not plan.prompts:
        hint = "start a replica of it; --unserved accepts that there is none yet"
        raise Failure(f"the jobs are created, but no live replica has {plan.base_model.id}", EXIT_REFUSED, hint)


def _lacks_replicas(plan: RetrainingPlan) -> str:
    """What happens to aliases that move to versions without a live replica; empty if there is one, or none moves."""
    if plan.num_replicas != 0 or not any(item.alias and not item.refused for item in plan.prompts):
        return ""
    return f"no live replica has {plan.base_model.id}: an alias that moves to a version of it will not be served"


def _agrees(num_new: int, base_model: str) -> bool:
    """Whether the user agrees. Without a terminal, nothing is created."""
    if not sys.stdin.isatty():
        stderr().print("no job was created: there is no terminal to ask; add --yes", markup=False)
        return False
    return agreed(f"Create {counted(num_new, 'job')} on {base_model}?")


def _show(plan: RetrainingPlan) -> None:
    there = f"; already on it: {counted(plan.num_there, 'aliased version')}" if plan.num_there else ""
    show(f"new base model {plan.base_model.id} ({plan.base_model.fingerprint[:19]}…){there}")
    if not plan.prompts:
        show("no other version has an alias: there is nothing to retrain")
        return
    made = table("PROMPT", "ALIAS", "VERSION", "MODEL", "DATA", "EXAMPLES", "ESTIMATE", "COMPARED BY", "PLAN")
    for item in plan.prompts:
        made.add_row(
            item.prompt,
            ", ".join(item.aliases),
            item.version.rpartition("/")[2],
            item.base_model,
            {True: "kept", False: "missing", None: ""}[item.data_kept],
            "" if item.num_examples is None else str(item.num_examples),
            "" if item.estimated_seconds is None else clock_text(item.estimated_seconds),
            _compared_by(item),
            _outcome(item),
        )
    show(made)
    for item in plan.prompts:
        for note in item.notes:
            show(f"{item.prompt}: {note}")


def _compared_by(item: PlannedRetraining) -> str:
    return f"{item.metric}, {counted(item.num_comparable, 'answer')}" if item.num_comparable and item.alias else ""


def _outcome(item: PlannedRetraining) -> str:
    if item.refused:
        return f"refused: {item.refused}"
    if (job := item.job) is None:
        return f"train, and move {item.alias} if it is better" if item.alias else "train without an alias"
    if job.result is not None:
        gate = "" if job.result.published else f" ({job.result.gate_decision})"
        return f"{job.name} {'published ' + job.result.version if job.result.published else 'was not published'}{gate}"
    return f"{job.name} is {job.state.value.lower()}"


def _show_created(before: tuple[PlannedRetraining, ...], after: tuple[PlannedRetraining, ...]) -> None:
    for old, new in zip(before, after, strict=True):
        if old.is_new:
            show(f"{new.prompt}: {new.job.name if new.job is not None else f'refused: {new.refused}'}")
    stderr().print("`softprompt jobs list` shows them; the same call shows what became of them", markup=False)


def _described(item: PlannedRetraining) -> dict[str, object]:
    return {
        "prompt": item.prompt,
        "aliases": list(item.aliases),
        "version": item.version,
        "base_model": item.base_model,
        "data_kept": item.data_kept,
        "num_examples": item.num_examples,
        "estimated_seconds": item.estimated_seconds,
        "metric": item.metric,
        "num_comparable": item.num_comparable,
        "moved_alias": item.alias,
        "job": None if item.job is None else item.job.name,
        "state": None if item.job is None else item.job.state,
        "published": None if item.job is None or item.job.result is None else item.job.result.version,
        "refused": item.refused,
        "notes": list(item.notes),
    }


def _hint(made: tuple[PlannedRetraining, ...]) -> str:
    could = any("can't be compared" in item.refused for item in made)
    return "--keep-aliases trains those that can't be compared, without moving an alias" if could else ""
