"""`softprompt demo`: the life of one prompt on this machine, explained while it happens. Each claim is checked.

`run` starts and stops the services through `softprompt.local`. `story` goes from the first step to the last: train a
prompt, serve it (`answers`), replace it while a stream runs (`swap`), and draw losses (`curve`). `promises` checks the
claims. It uses the services as a user does and knows nothing of their insides; its rows come from `examples/`
(`example`), its sizes from `plan`.
"""
