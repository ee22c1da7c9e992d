"""Keys of the objects in the store. `docs/store.md` describes the layout and the protocol."""

from __future__ import annotations

from shared.prompt.digest import check_digest

STORE_KEY = "store.json"
BLOBS = "blobs/sha256/"
LOG = "log/"
TRUNCATED = "truncated/"
SNAPSHOTS = "snapshot/"
REPLICAS = "replicas/"
USAGE = "usage/"
USAGE_REFUSED = "usage-refused/"
BUDGETS_KEY = "budgets.json"

MAX_COMMIT_BYTES = 1 << 20
MAX_SNAPSHOT_BYTES = 512 << 20
MAX_SMALL_BYTES = 1 << 16
MAX_REPLICA_BYTES = 8 << 20
MAX_USAGE_BYTES = 16 << 20


def blob_key(digest: str) -> str:
    """Key of the blob with this digest."""
    hexadecimal = check_digest(digest).removeprefix("sha256:")
    return f"{BLOBS}{hexadecimal[:2]}/{hexadecimal}.safetensors"


def digest_in(key: str) -> str | None:
    """The digest in the key of a blob; None for another file."""
    hexadecimal = key.rpartition("/")[2].removesuffix(".safetensors")
    digest = f"sha256:{hexadecimal}"
    return (
        digest
        if len(hexadecimal) == 64 and set(hexadecimal) <= set("0123456789abcdef") and blob_key(digest) == key
        else None
    )


def log_key(revision: int) -> str:
    """Key of a log entry."""
    return f"{LOG}{revision:012d}.json"


def truncated_key(revision: int) -> str:
    """Key of the mark that the log is truncated up to `revision`."""
    return f"{TRUNCATED}{revision:012d}.json"


def snapshot_key(revision: int) -> str:
    """Key of the snapshot of the state at `revision`."""
    return f"{SNAPSHOTS}{revision:012d}.json"


def revision_in(key: str) -> int | None:
    """The revision in a key under `log/`, `truncated/` or `snapshot/`; None for another file."""
    number = key.rpartition("/")[2].removesuffix(".json")
    return int(number) if len(number) == 12 and number.isdecimal() and number.isascii() else None


def replica_key(replica: str) -> str:
    """Key of a replica's record."""
    return f"{REPLICAS}{replica}.json"
