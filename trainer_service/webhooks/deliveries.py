"""Sends what is in the outbox, and copies the events of the prompt store into it, while the trainer runs.

Each endpoint has its own loop and gets one request at a time, so a slow one delays no other.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol

from shared.errors import NotFound, SoftPromptError
from shared.process.call_pool import CallPool
from shared.store.store import PromptStore
from shared.store.watch import StoreWatcher
from shared.values.webhooks import Webhook
from trainer_service.jobs.config import retry_delay_seconds
from trainer_service.pools import TrainerPools
from trainer_service.webhooks import sender
from trainer_service.webhooks.endpoints import Endpoint, Endpoints
from trainer_service.webhooks.events import EventType, event_of_test, events_of_commit, events_of_replica
from trainer_service.webhooks.outbox import Delivery, DeliveryState, Outbox

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Mean time between two checks for due deliveries."""
REPLICAS_SECONDS = 15.0
"""Mean time between two reads of the replicas' records."""
LEASE_SECONDS = 60.0
"""Longer than any attempt. If a trainer dies, its delivery is repeated after this time."""
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 5.0, 6 * 3600.0
_REMOVE_SECONDS = 3600.0


class DeliveryObserver(Protocol):
    """Called on the event loop."""

    def webhook_sent(self, outcome: str) -> None:
        """An attempt has ended: delivered, failed (it will be retried) or dead (it will not)."""

    def set_webhooks(self, pending: int, dead: int) -> None:
        """The numbers of waiting deliveries and of dead letters, of all endpoints in the file."""


class Deliveries:
    """Runs until `run` is cancelled. `list`, `test` and `retry` answer calls meanwhile."""

    def __init__(
        self,
        outbox: Outbox,
        endpoints: Endpoints,
        store: PromptStore,
        pools: TrainerPools,
        observer: DeliveryObserver,
        *,
        lease_seconds: float = LEASE_SECONDS,
        max_attempts: int = 16,
        first_retry_seconds: float = _FIRST_RETRY_SECONDS,
    ) -> None:
        self._outbox, self._endpoints, self._store, self._observer = outbox, endpoints, store, observer
        self._database, self._prompt_store, self._http = pools.job_database, pools.prompt_store, pools.webhooks
        self._watch_pool: CallPool = pools.prompt_store_watch
        self._lease_seconds, self._max_attempts = lease_seconds, max_attempts
        self._first_retry_seconds = first_retry_seconds

    async def run(self) -> None:
        """Delivers until cancelled, despite failures. Returns at once without a webhooks file."""
        if not self._endpoints.is_configured:
            return
        await self._database.retry(self._outbox.release)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_store(), name="webhooks: prompt store")
            group.create_task(self._follow_replicas(), name="webhooks: replicas")
            group.create_task(self._clean(), name="webhooks: old deliveries")
            await self._deliver_to_all(group)

    async def list(self) -> tuple[Webhook, ...]:
        """The endpoints with the numbers of their deliveries and their dead letters."""
        counts = await self._database.call(self._outbox.counts)
        return tuple(
            [
                Webhook(
                    name=endpoint.name,
                    url=endpoint.origin,
                    event_types=endpoint.events,
                    prompts=endpoint.prompts,
                    num_pending=counts.get((endpoint.name, DeliveryState.PENDING), 0),
                    num_delivered=counts.get((endpoint.name, DeliveryState.DELIVERED), 0),
                    num_dead=counts.get((endpoint.name, DeliveryState.DEAD), 0),
                    dead_letters=await self._database.call(self._outbox.dead_letters, endpoint.name),
                )
                for endpoint in self._endpoints.current
            ]
        )

    async def test(self, name: str) -> str:
        """Queues an event of the type "test" for one endpoint and returns its id. Raises NotFound."""
        event = event_of_test(self._named(name).name)
        await self._database.call(self._outbox.add, [event])
        return event.id

    async def retry(self, name: str) -> int:
        """Repeats dead and waiting deliveries of one endpoint at once; returns their number. Raises NotFound."""
        return await self._database.call(self._outbox.retry, self._named(name).name)

    def _named(self, name: str) -> Endpoint:
        found = next((endpoint for endpoint in self._endpoints.current if endpoint.name == name), None)
        if found is None:
            raise NotFound("webhook", name[:80])
        return found

    async def _deliver_to_all(self, group: asyncio.TaskGroup) -> None:
        """Keeps one loop for each name in the file."""
        running: dict[str, asyncio.Task[None]] = {}
        while True:
            self._endpoints.look()
            names = {endpoint.name for endpoint in self._endpoints.current}
            for name in names - running.keys():
                running[name] = group.create_task(self._deliver_to(name), name=f"webhooks: {name}")
            for name in running.keys() - names:
                running.pop(name).cancel()
            await _pause(LOOK_SECONDS)

    async def _deliver_to(self, name: str) -> None:
        while True:
            try:
                delivery = await self._database.call(self._outbox.claim, name, self._lease_seconds)
                if delivery is not None:
                    await self._send(self._named(name), delivery)
                    continue
            except SoftPromptError as error:
                log.warning("webhook deliveries delayed: %s", error.message)
            except Exception:
                log.exception("a webhook's delivery failed with an unexpected error")
            await _pause(LOOK_SECONDS)

    async def _send(self, endpoint: Endpoint, delivery: Delivery) -> None:
        asked = [0.0]
        try:
            reason = await self._http.call(
                sender.send, endpoint, delivery.event_id, delivery.body.encode(), asked.append
            )
        except SoftPromptError as error:
            reason = error.message
        fields = {"webhook": endpoint.name, "event": delivery.event_id, "attempt": delivery.attempt}
        if not reason:
            await self._database.call(self._outbox.delivered, delivery)
            self._observer.webhook_sent("delivered")
            log.info("webhook delivered", extra={"fields": fields})
            return
        dead = delivery.attempt >= self._max_attempts or reason == sender.GONE
        pause = retry_delay_seconds(delivery.attempt, self._first_retry_seconds, _LAST_RETRY_SECONDS)
        pause = max(pause, min(asked[-1], _LAST_RETRY_SECONDS))
        await self._database.call(self._outbox.failed, delivery, reason, None if dead else pause)
        self._observer.webhook_sent("dead" if dead else "failed")
        log.warning(
            "webhook not delivered; giving up" if dead else "webhook not delivered; trying again",
            extra={"fields": {**fields, "why": reason}},
        )

    async def _follow_store(self) -> None:
        """Copies the commits of the prompt store into the outbox, beginning where the last trainer ended; at the very
        first start, with the next commit.
        """
        store_id = self._store.id
        watcher = StoreWatcher(
            self._store, await self._database.retry(self._outbox.cursor, store_id), pool=self._watch_pool
        )
        is_first = watcher.revision is None
        while True:
            changes = await watcher.poll()
            if changes is not None and (changes.commits or changes.restarted):
                if changes.restarted and not is_first:
                    log.warning(
                        "the prompt store's log was truncated or replaced; the events since the last read are not sent"
                    )
                id = self._store.id
                events = [event for commit in changes.commits for event in events_of_commit(id, commit)]
                await self._database.retry(self._outbox.add, events, (id, changes.index.revision))
                is_first = False
            await watcher.pause()

    async def _follow_replicas(self) -> None:
        while True:
            if any(EventType.REPLICA_REFUSED in endpoint.events for endpoint in self._endpoints.current):
                try:
                    records = await self._prompt_store.call(self._store.list_replicas)
                    index = await self._prompt_store.call(self._store.refresh)  # knows what the replicas know
                    if events := [event for record in records for event in events_of_replica(record, index)]:
                        await self._database.call(self._outbox.add, events)
                except SoftPromptError as error:
                    log.warning("the replicas' records can't be read for webhooks: %s", error.message)
            await _pause(REPLICAS_SECONDS)

    async def _clean(self) -> None:
        waited = _REMOVE_SECONDS
        while True:
            try:
                if waited >= _REMOVE_SECONDS:
                    waited = 0.0
                    await self._database.call(self._outbox.remove_old)
                counts = await self._database.call(self._outbox.counts)
                names = {endpoint.name for endpoint in self._endpoints.current}
                pending, dead = (
                    sum(count for (name, state), count in counts.items() if state is wanted and name in names)
                    for wanted in (DeliveryState.PENDING, DeliveryState.DEAD)
                )
                self._observer.set_webhooks(pending, dead)
            except SoftPromptError as error:
                log.warning("the webhooks' deliveries can't be counted: %s", error.message)
            await _pause(REPLICAS_SECONDS)
            waited += REPLICAS_SECONDS


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
