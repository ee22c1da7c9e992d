"""How files that may run code when they are read begin."""

from __future__ import annotations

PICKLE_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""The first bytes of torch's zip files and of pickles of protocols 2 to 5."""
