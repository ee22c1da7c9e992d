"""The migrations, by number.

Each has the tables as they were at its time and does not import the present schema, so later changes leave it as it is.
"""
