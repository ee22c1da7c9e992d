"""Conversion between protobuf messages and the values of `shared.values`, for the client and both services.

`mirror` reads and writes a message by the names of its fields. The modules imported here register what has another
shape than its message. Knows generated code and protobuf, and no service.
"""

from shared.wire import generation as generation
from shared.wire import prompts as prompts
from shared.wire import spec as spec
