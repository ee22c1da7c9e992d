"""The arguments and results of the client: plain frozen dataclasses without protobuf.

Most are those of `shared.values`, with the methods that only callers need: a table in a notebook, a file, a history.
`keywords` repeats the sampling parameters for type checkers. Knows no connection.
"""
