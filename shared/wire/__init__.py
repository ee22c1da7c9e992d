"""Conversion between protobuf messages and the values of `shared.values`, for the client and both services.

Knows generated code and protobuf, and no service. What belongs to one service alone stays beside its servicers.
"""
