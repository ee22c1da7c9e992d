"""Cells of delimited text whose quotes begin after spaces: `hello, "positive"`. By RFC 4180, the spaces and the quotes
are a part of the cell, but most writers of such lines mean the quoted text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import lru_cache


class UnclosedQuote(Exception):
    """A quote after spaces isn't closed within the lines that RFC 4180 takes for one record."""


def without_spaces(cells: list[str], lines: Sequence[str], delimiter: str = ",") -> list[str]:
    """The cells of one record, which are `cells`, read by RFC 4180, unless quotes around a cell begin after spaces.

    `lines`: the record's lines with their ends. Raises UnclosedQuote.
    """
    if not any(map(_spaced_quote(delimiter).search, lines)):
        return cells
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        found = next(reader)
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise UnclosedQuote from None
        return cells  # the quotes are a part of the text
    if reader.line_num < len(lines):
        raise UnclosedQuote
    has_quotes_as_text = [cell.lstrip(" ") for cell in cells] != [cell.lstrip(" ") for cell in found]
    return found if has_quotes_as_text else cells


@lru_cache(maxsize=8)
def _spaced_quote(delimiter: str) -> re.Pattern[str]:
    return re.compile(rf'(?:^|{re.escape(delimiter)}) +"')
