"""Pages of list calls."""

from __future__ import annotations

MAX_PAGE_SIZE = 1000
"""Entries of a page. Larger page sizes mean this one."""
