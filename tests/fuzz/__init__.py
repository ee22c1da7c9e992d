"""Many damaged inputs for everything that reads bytes or messages of others: `make fuzz`.

Knows how to damage valid inputs (`mutate`), what reads them in one process (`readers`) and through real sockets
(`services`), and what a reader may answer: the value, or an error for its caller. Anything else is a finding. An input
depends on its target and its number only, so a finding is repeated with `python -m tests.fuzz TARGET --first NUMBER`.
"""
