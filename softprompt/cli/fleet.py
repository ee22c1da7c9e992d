"""`softprompt prompts status`, `loaded` and `watch`: where versions are served, and how the store changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import InferenceOption, JsonOption, PromptArgument, TrainerOption, example, open_client
from softprompt.cli.output import local_time, print_json, show, table

if TYPE_CHECKING:
    from shared.values.prompts import Alias, PromptChange, VersionStatus

app = typer.Typer()


@app.command(epilog=example("softprompt prompts status support-tone"))
def status(prompt: PromptArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Show how many live replicas serve each version, how soon after its publication, and which replicas refused it and
    why.
    """
    with open_client(trainer) as client:
        found = client.prompt_status(prompt)
    if as_json:
        print_json(found)
        return
    made = table("VERSION", "KIND", "ALIASES", "SERVED BY", "SERVED AFTER", "REFUSED BY")
    for version in found.versions:
        about = _short(version.version), version.kind.lower(), ", ".join(version.aliases)
        served_by = f"{len(version.served)} of {version.num_replicas}"
        refused = sum(refusal.has_base_model for refusal in version.refused)
        made.add_row(*about, served_by, _served_after(version), str(refused or ""))
    show(made if found.versions else f"{prompt} has no versions")
    for version in found.versions:
        for refusal in version.refused:
            if not refusal.has_base_model:
                continue  # a replica of another base model, as in every store with several
            show(f"{_short(version.version)} is refused by {refusal.replica}: {refusal.reason}")
    for replica in found.replicas:
        behind = ", has not seen the newest changes" if replica.revision < found.revision else ""
        show(f"replica {replica.id}: {replica.base_model}, last report {local_time(replica.update_time)}{behind}")
    if not found.replicas:
        show("no replica is alive")


@app.command(epilog=example("softprompt prompts loaded support-tone"))
def loaded(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Name of a prompt. Default: all prompts.")] = "",
    as_json: JsonOption = False,
    inference: InferenceOption = None,
) -> None:
    """Show the versions that the answering inference replica has loaded, and those that it refused and why."""
    with open_client(inference=inference) as client:
        found = client.loaded_prompts(prompt)
    if as_json:
        print_json(*found.prompts)
        return
    made = table("VERSION", "STATE", "KIND", "ALIASES", "TOKENS", "KIB", "SERVED AFTER", "ACTIVE", "REASON")
    for item in found.prompts:
        made.add_row(
            _short(item.version),
            item.state,
            item.kind.lower(),
            ", ".join(item.aliases),
            str(item.num_virtual_tokens),
            str(-(-item.prefix_kv_bytes >> 10)) if item.prefix_kv_bytes else "",
            "" if item.publish_to_served_seconds is None else f"{item.publish_to_served_seconds:.2f} s",
            str(item.active_requests),
            item.reason,
        )
    show(made if found.prompts else "nothing is loaded")
    show(f"store revision {found.revision}")


@app.command(epilog=example("softprompt prompts watch --prefix support-"))
def watch(
    prefix: Annotated[str, typer.Option(help="Only prompts whose names begin with this text.")] = "",
    after: Annotated[int | None, typer.Option(min=0, help="Only changes after this store revision.")] = None,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Show changes of versions and aliases as they happen, until Ctrl-C."""
    with open_client(trainer) as client:
        for change in client.watch_prompts(after_revision=after, name_prefix=prefix):
            if as_json:
                print_json({"change": type(change).__name__, **vars(change)})
            else:
                show(f"{change.revision:>8}  {_change_text(change)}")


def _change_text(change: PromptChange) -> str:
    from shared.values.prompts import AliasSet, Deleted, Published, Snapshot

    match change:
        case Snapshot(prompts=prompts):
            names = [f"{_short(prompt.name)} ({prompt.num_versions})" for prompt in prompts]
            return f"{len(prompts)} prompts: {', '.join(names)}"
        case Published(version=version):
            return f"{_short(version.name)} published"
        case AliasSet(prompt=prompt, alias=alias):
            return f"{_short(prompt)}: {alias.name} " + (f"-> {targets_text(alias)}" if alias.targets else "removed")
        case Deleted(version=name):
            return f"{_short(name)} deleted"
        case _:
            return "a change of a kind that this client is too old to know"


def targets_text(alias: Alias) -> str:
    """`3`, or several versions with their shares of the traffic: `3:0.9 4:0.1`."""
    if len(alias.targets) == 1:
        return str(alias.targets[0].version)
    total = sum(target.weight for target in alias.targets)
    return " ".join(f"{target.version}:{target.weight / total:.3g}" for target in alias.targets)


def _served_after(version: VersionStatus) -> str:
    """Seconds of the slowest replica that was running when the version was published."""
    seconds = [item.publish_to_served_seconds for item in version.served if item.publish_to_served_seconds is not None]
    return f"{max(seconds):.2f} s" if seconds else ""


def _short(name: str) -> str:
    return name.removeprefix("prompts/").replace("/versions/", "@")
