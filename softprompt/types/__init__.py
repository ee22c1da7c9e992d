"""The arguments and results of the client: plain frozen dataclasses without protobuf.

Most are those of `shared.values`, with the methods that only callers need: a table in a notebook, a file, a history.
`keywords` repeats the sampling parameters for type checkers. Knows no connection: `client` makes the values, and gives
a job the functions that read its history and report. `display` and `report`, imported when needed, draw the values.
"""
