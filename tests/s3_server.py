"""A real S3-compatible server on loopback, with one bucket."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

BUCKET = "prompts"
_one_write = threading.Lock()
_put_object = S3Response.put_object


@functools.wraps(_put_object)
def _atomic_put_object(self: S3Response) -> Any:
    """moto looks for an object and writes it in two steps, between which another request can write; S3 does not."""
    with _one_write:
        return _put_object(self)


S3Response.put_object = _atomic_put_object


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A fresh server while the block runs. Gives the environment variables of its clients."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint, key, region = f"http://{host}:{port}", "test", "us-east-1"
        keys = {"aws_access_key_id": key, "aws_secret_access_key": key, "region_name": region}
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=BUCKET)
        yield {
            "AWS_ENDPOINT": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": key,
            "AWS_REGION": region,
        }
    finally:
        server.stop()
