"""Who calls, what they may do and how much of it. Knows no gRPC: `shared.rpc.guard` puts it before every call."""
