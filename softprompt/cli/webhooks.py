"""`softprompt webhooks`: the trainer's webhooks, the outcomes of their deliveries, and tests of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import local_time, print_json, show, show_or_json, table

if TYPE_CHECKING:
    from shared.values.webhooks import DeadLetter, Webhook

app = typer.Typer(no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Name of the webhook in the webhooks file.")]


@app.command("list", epilog=example("softprompt webhooks list"))
def list_(as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """List the webhooks with their deliveries of the last 30 days, and the deliveries that failed."""
    with open_client(trainer) as client:
        found = client.list_webhooks()
    if as_json:
        print_json(*found)
        return
    if not found:
        show("no webhooks: the trainer has no webhooks file, or it is empty")
        return
    made = table("WEBHOOK", "URL", "EVENTS", "PROMPTS", "DELIVERED", "WAITING", "DEAD")
    for webhook in found:
        counts = (webhook.num_delivered, webhook.num_pending, webhook.num_dead)
        about = ", ".join(webhook.event_types), ", ".join(webhook.prompts)
        made.add_row(webhook.name, webhook.url, *about, *map(str, counts))
    show(made)
    failed = [(webhook, letter) for webhook in found for letter in webhook.dead_letters]
    if failed:
        show("")
        _show_failed(failed)


@app.command("test", epilog=example("softprompt webhooks test ci"))
def send_test(name: NameArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Send an event of the type "test" to a webhook, and print its id. `webhooks list` shows whether it arrived."""
    with open_client(trainer) as client:
        event_id = client.test_webhook(name)
    show_or_json({"event_id": event_id}, event_id, as_json)


@app.command(epilog=example("softprompt webhooks retry ci"))
def retry(name: NameArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Repeat the dead and the waiting deliveries of a webhook at once."""
    with open_client(trainer) as client:
        repeated = client.retry_webhook(name)
    text = "1 delivery is repeated" if repeated == 1 else f"{repeated} deliveries are repeated"
    show_or_json({"num_deliveries": repeated}, text, as_json)


def _show_failed(failed: list[tuple[Webhook, DeadLetter]]) -> None:
    made = table("FAILED", "EVENT", "ABOUT", "ID", "ATTEMPTS", "CREATED", "ERROR")
    for webhook, letter in failed:
        state = str(letter.attempts) + (", given up" if letter.is_dead else ", trying again")
        about = letter.event_type, letter.subject, letter.event_id
        made.add_row(webhook.name, *about, state, local_time(letter.create_time), letter.error)
    show(made)
