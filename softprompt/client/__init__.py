"""The client: async and sync, over `prompttuning.v1`. The only part of this package that knows gRPC and protobuf."""
