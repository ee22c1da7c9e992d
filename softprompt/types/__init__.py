"""The arguments and results of the client: plain frozen dataclasses without protobuf.

Most are those of `shared.values`, with the methods that only callers need: a table in a notebook, a file, a history.
`keywords` reads sampling parameters given as keywords. Knows no connection: `client` makes the values, and gives
a job the functions that read its history and report. `display` and `report`, imported when needed, draw the values.
"""
