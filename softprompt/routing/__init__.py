"""From a prompt or a base model to a live replica: one implementation for the router, the gateway and the client.

`directory` is what routing has to know, `store` gives it from the prompt store (records of replicas, index of prompts);
`choice` picks a replica for a version within a bound on its load, `links` has a channel to each, `routing` makes the
attempts; `ask` reads a request's input without its other fields; `overview` answers the methods about replicas
themselves. The client has all of this behind its stubs (`softprompt.client.routed_channel`). Knows no model, text or
credentials. `docs/routing.md` describes the behaviour.
"""
