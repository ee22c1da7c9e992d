"""Webhooks: signed HTTP requests that tell other programs what happened, at least once.

`endpoints` reads the operator's file, `events` says what is told, `outbox` keeps each delivery in the job database,
`sender` signs and sends one, `deliveries` runs the loops.
"""
