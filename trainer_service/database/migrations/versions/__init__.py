"""The migrations, by number.

Each has the tables as they were at its time and imports nothing of `schema`, so that later changes don't change it.
"""
