"""Webhooks: signed HTTP requests that tell other programs what happened, at least once.

`events` makes an event's body of a change of a job, a commit of the store or a replica's record; `endpoints` reads the
operator's file, which says where events go; `outbox` keeps each delivery in the job database until it is made, `sender`
signs and sends one, `deliveries` runs the loops of one trainer. Knows no gRPC, callers or workers: jobs' changes come
through `JobStore.on_move`, those of prompts from the store's log.
"""
