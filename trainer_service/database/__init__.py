"""The trainer's SQL database: an SQLite file, or PostgreSQL by URL.

`database` opens it, migrates it and runs transactions; `schema` defines the tables; `migrations` creates and changes
them. The tables hold jobs, their events, tenants' shares, worker slots, datasets by tenant, and the service's secret
keys. `jobs.store` and `datasets.ledger` interpret the rows. Methods block and raise Unavailable while the database is
unavailable. This package knows no states, limits or
callers; the address comes from the settings.
"""
