"""The text of one cell. A cell comes from a file's reader or from a Python caller and may be any value."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from shared.errors import InvalidInput
from shared.text.blank import is_unicode
from softprompt.data.problems import Unusable
from softprompt.types.type_names import type_name

_NARROW = {"float16": "e", "halffloat": "e", "float32": "f", "float": "f"}
"""struct's codes of narrow floats, by the names that numpy, pandas, polars (in lower case) and Arrow have for them."""


def is_missing(value: Any) -> bool:
    """Whether the value is None, NaN, or pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    value = _plain(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, part: str) -> str:
    """The text of a cell, as in JSON or ISO 8601. Raises Unusable for a value that is not a scalar or is missing, and
    for invalid Unicode.
    """
    if is_missing(value):
        raise Unusable("is missing", part, f"{part} is missing")
    value = _plain(value)
    if isinstance(value, Enum):
        return text_of(value.value, part)
    if isinstance(value, str):
        return _valid_unicode(str.__str__(value), part)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isinf(value):
        raise Unusable("is infinite; text is expected", part, f"{part} is infinite")
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int | Decimal | UUID):
        try:
            return str(value)
        except ValueError:  # Python refuses to write integers of more than 4,300 digits
            raise Unusable("is a number of too many digits", part, f"{part} digits") from None
    if isinstance(value, date | time):
        return value.isoformat()
    raise Unusable(f"must be text, not {type_name(value)}{_advice(value)}", part, f"{part} type {type(value).__name__}")


def fields_of(value: Any, part: str = "") -> dict[Any, Any] | None:
    """The fields of a mapping, a dataclass, a named tuple, a model of pydantic or a row of a database; None for a value
    of another kind. Raises Unusable for any error of the value's own methods.
    """
    try:
        return _fields_of(value)
    except Exception as error:  # a caller's object may raise anything
        raise Unusable(f"can't be read: {type(error).__name__}: {error}", part, "mapping") from error


def _fields_of(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, type):
        return None
    if is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    for name in ("_asdict", "model_dump"):
        if callable(method := getattr(value, name, None)):
            return dict(method())
    return dict(value) if hasattr(value, "keys") and hasattr(value, "__getitem__") else None


def with_short_floats(rows: Iterable[dict[str, Any]], types: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The rows with narrow floats as the shortest decimals: 0.1, not 0.10000000149011612. `types`: of the columns."""
    kinds = {name: str(kind).lower().removesuffix("[pyarrow]") for name, kind in types.items()}
    narrow = {name: _NARROW[kind] for name, kind in kinds.items() if kind in _NARROW}
    for row in rows:
        for name, code in narrow.items():
            if isinstance(row[name], float) and math.isfinite(row[name]) and not row[name].is_integer():
                row[name] = _shortest(row[name], code)
        yield row


def _shortest(value: float, code: str) -> float:
    found = (float(f"{value:.{digits}g}") for digits in (range(3, 6) if code == "e" else range(6, 10)))
    return next((short for short in found if struct.pack(code, short) == struct.pack(code, value)), value)


def check_unicode(text: str, field: str) -> str:
    """The text. Raises InvalidInput for one that UTF-8 can't represent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"is not valid Unicode: half a surrogate pair at character {error.start + 1}"
        raise InvalidInput.of(field, reason) from None
    return text


def shown(value: object, most: int = 40, form: Callable[[object], str] = repr) -> str:
    """A short representation of a value on one line, at most `most` characters."""
    try:
        text = form(value)
    except Exception:  # a caller's object may raise anything
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else text[: most - 3] + "..."


def _plain(value: Any) -> Any:
    """Scalars and zero-dimensional arrays of numpy and torch as Python values; other values unchanged."""
    if type(value).__module__ not in ("numpy", "torch") or getattr(value, "ndim", None) != 0:
        return value  # also numpy.ma's masked value, whose `item` is 0.0
    try:
        plain = value.item()
    except RuntimeError:  # a tensor of the device "meta" has no value
        return value
    kind = str(value.dtype).removeprefix("torch.")
    if kind in _NARROW and isinstance(plain, float):  # float32(0.1) means 0.1 and not 0.10000000149011612
        return _shortest(plain, _NARROW[kind])
    if isinstance(plain, int) and kind.startswith("datetime64"):  # `item` gives times in nanoseconds as integers
        return value.astype("datetime64[us]").item()
    return value if isinstance(plain, int) and kind.startswith("timedelta64") else plain


def _valid_unicode(text: str, part: str) -> str:
    if text.isascii() or is_unicode(text):
        return text
    try:  # both halves of a pair as two characters, as languages of 16-bit characters write them
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeError:
        at = next(index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff")
        reason = f"is not valid Unicode: half a surrogate pair at character {at + 1}"
        raise Unusable(reason, part, f"{part} surrogate") from None


def _advice(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return "; decode it first"
    if isinstance(value, dict | list | tuple):
        return "; write it as text first, for example with json.dumps"
    return "; write it as text first"
