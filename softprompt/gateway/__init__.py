"""The gateway: OpenAI's HTTP API over the gRPC services. Stateless; it has no credentials and no logic of a domain.

A request's bearer token goes on to the services, so their roles, limits and audit hold. `app` has the routes; `chat`,
`completions`, `responses`, `models`, `files` and `fine_tuning` have one part of the API each; `exchange` is what all
requests have in common; `server` is the process.
"""
