"""Alembic's environment and the migrations of the job database.

Each file of `versions` makes one change, on SQLite and on PostgreSQL, and names the one before it; a starting trainer
applies those that its database lacks. A migration is never changed after a release. What the tables hold is in
`database.schema`.
"""
