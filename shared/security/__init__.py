"""Callers, their permissions and their limits. Knows no gRPC: `shared.rpc.guard` puts it before every call."""
