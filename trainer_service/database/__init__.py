"""The trainer's SQL database: SQLite in a file, or PostgreSQL by URL.

`database` opens it, migrates it and runs transactions; `schema` defines every table; `migrations` builds them, one file
a release step. The tables hold jobs, their events, tenants' shares, worker slots, datasets by tenant, and the service's
secret keys. This package doesn't know what the rows mean: `jobs.store` and `datasets.ledger` do. Every method blocks
and raises Unavailable while the database is away.
"""
