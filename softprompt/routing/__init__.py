"""From a prompt or a base model to a live replica: one implementation for the router, the gateway and the client.

`docs/routing.md` describes the behaviour.
"""
