"""From a trained soft prompt to a published version, exactly once.

`publication` makes the blob and the result from the training result; `gate` decides whether it may be published;
`alias_claim` checks whether the job may still move its alias; `publisher` writes the version, retrying while the prompt
store is unavailable; `rollout` waits until replicas serve it. This package doesn't know workers:
the training result comes from `dispatch`, and what is current from the prompt store.
"""
