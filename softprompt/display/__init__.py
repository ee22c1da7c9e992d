"""What a person sees of something that goes on: training progress, answers beside each other. Knows the client's types, not gRPC."""
