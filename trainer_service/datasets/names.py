"""Names of datasets, `datasets/sha256-<hex>`, and the one answer for a name that a caller may not use or that means
nothing.
"""

from __future__ import annotations

import re

from shared.errors import NotFound

NAME = re.compile(r"datasets/sha256-([0-9a-f]{64})")


def dataset_name(hexadecimal: str) -> str:
    return f"datasets/sha256-{hexadecimal}"


def unknown_dataset(name: str) -> NotFound:
    """The same for a dataset that doesn't exist and for one of another tenant, so that the answer tells nothing about
    the other tenant.
    """
    if not NAME.fullmatch(name):
        return NotFound("dataset", name[:120], "names look like datasets/sha256-<64 hexadecimal digits>")
    return NotFound("dataset", name, "upload it first")
