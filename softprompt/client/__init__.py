"""The client: async and sync, over `prompttuning.v1`. Only this part of the package imports gRPC and protobuf."""
