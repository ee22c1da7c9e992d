"""From a trained soft prompt to a published version, exactly once.

`publication` makes the blob and the result from what training left; `gate` decides whether it may be published;
`alias_claim` checks that nobody has moved the alias meanwhile; `publisher` writes the version, retrying while the
prompt store is away; `rollout` waits until replicas serve it. This package doesn't know workers.
"""
