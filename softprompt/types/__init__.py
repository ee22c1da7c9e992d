"""The arguments and results of the client: plain frozen dataclasses without protobuf."""
