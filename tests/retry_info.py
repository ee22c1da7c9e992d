"""When a refused call says to come back, as it stands on the wire: our client takes a second where nothing is said,
which would hide it.
"""

from __future__ import annotations

from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def told_delay_seconds(error: BaseException | None) -> float | None:
    """Of RetryInfo in the status of an RPC error, or of the one that caused a domain error; None if there is none."""
    rpc_error = error if isinstance(error, grpc.RpcError) else error.__cause__ if error is not None else None
    assert isinstance(rpc_error, grpc.RpcError)
    status = rpc_status.from_call(cast("grpc.Call", rpc_error))
    for detail in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds() / 1e9)
    return None
