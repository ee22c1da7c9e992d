"""The gRPC server, what runs before and after each call, and the mapping between errors and statuses."""
