"""Jobs and their events as rows of the job database.

`job_store` is the contract: every accepted job, its state, its numbered events, leases and claims; what it has
acknowledged survives any crash. The other modules are its parts, each about some tables: the event log, listings, what
a caller may see, tenants' shares, worker slots, expiry. `files` keeps checkpoints and unpublished results beside the
rows. All methods block and are thread-safe.
"""
