"""gRPC handlers: convert the request, delegate, convert the result."""
