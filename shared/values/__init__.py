"""Values that the client, the trainer, the engine and the command line share: one frozen type for each fact.

Each type has the field names of its protocol message and checks its own ranges. The types are standard dataclasses
and enums, so the client can use them without pydantic; pydantic models of the services take them as fields. Nothing
here knows protobuf (`shared.wire` converts), torch, a transport or a store.
"""
