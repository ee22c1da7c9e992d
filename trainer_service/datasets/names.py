"""Names of datasets, `datasets/sha256-<hex>`, and the error for an unknown name."""

from __future__ import annotations

import re

from shared.errors import NotFound

NAME = re.compile(r"datasets/sha256-([0-9a-f]{64})")


def dataset_name(hexadecimal: str) -> str:
    """The name of the dataset with this SHA-256 digest."""
    return f"datasets/sha256-{hexadecimal}"


def unknown_dataset(name: str) -> NotFound:
    """The error for an unknown dataset. It is the same for another tenant's dataset, so it reveals nothing."""
    if not NAME.fullmatch(name):
        return NotFound("dataset", name[:120], "names look like datasets/sha256-<64 hexadecimal digits>")
    return NotFound("dataset", name, "upload it first")
