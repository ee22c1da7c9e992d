"""Where each thing stands in the store. `docs/store.md` gives the layout and the protocol in prose."""

from __future__ import annotations

from shared.prompt.blob import check_digest

STORE_KEY = "store.json"
BLOBS = "blobs/sha256/"
LOG = "log/"
TRUNCATED = "truncated/"
SNAPSHOTS = "snapshot/"
REPLICAS = "replicas/"

MAX_COMMIT_BYTES = 1 << 20
MAX_SNAPSHOT_BYTES = 512 << 20
MAX_SMALL_BYTES = 1 << 16
MAX_REPLICA_BYTES = 8 << 20


def blob_key(digest: str) -> str:
    hexadecimal = check_digest(digest).removeprefix("sha256:")
    return f"{BLOBS}{hexadecimal[:2]}/{hexadecimal}.safetensors"


def digest_in(key: str) -> str | None:
    """The digest that a blob's key stands for; None for a stray file."""
    hexadecimal = key.rpartition("/")[2].removesuffix(".safetensors")
    digest = f"sha256:{hexadecimal}"
    return (
        digest
        if len(hexadecimal) == 64 and set(hexadecimal) <= set("0123456789abcdef") and blob_key(digest) == key
        else None
    )


def log_key(revision: int) -> str:
    return f"{LOG}{revision:012d}.json"


def truncated_key(revision: int) -> str:
    return f"{TRUNCATED}{revision:012d}.json"


def snapshot_key(revision: int) -> str:
    return f"{SNAPSHOTS}{revision:012d}.json"


def revision_in(key: str) -> int | None:
    """The revision that a key under `log/`, `truncated/` or `snapshot/` stands for; None for a stray file."""
    number = key.rpartition("/")[2].removesuffix(".json")
    return int(number) if len(number) == 12 and number.isdecimal() and number.isascii() else None


def replica_key(replica: str) -> str:
    return f"{REPLICAS}{replica}.json"
