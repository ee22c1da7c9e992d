"""What goes into the client and what comes out: plain frozen dataclasses, no protobuf."""
