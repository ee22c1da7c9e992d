"""The gRPC server, what runs before and after each call, and the mapping between errors and statuses.

`server` listens, renews certificates, drains and stops; `late` lets it listen before its services are there.
`interceptors` is around every call and uses `guard` (authentication, permissions, limits, audit), `metrics` and
`errors`; `messages` reads requests, `ports` is for operators. Knows no service: handlers and settings
come from the server of each service. Permissions come from `shared.security`.
"""
