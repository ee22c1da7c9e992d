"""The retry delay in the status of a refused call. Our client takes a second without one, which hides its absence."""

from __future__ import annotations

from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def retry_delay_seconds(error: BaseException | None) -> float | None:
    """Reads the status of an RPC error, or of the RPC error that caused a domain error. None without RetryInfo."""
    rpc_error = error if isinstance(error, grpc.RpcError) else error.__cause__ if error is not None else None
    assert isinstance(rpc_error, grpc.RpcError)
    status = rpc_status.from_call(cast("grpc.Call", rpc_error))
    for detail in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds() / 1e9)
    return None
