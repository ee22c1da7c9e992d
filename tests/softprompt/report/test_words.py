"""Numbers for people."""

from __future__ import annotations

import math

from softprompt.report.words import amount, loss, number


def test_what_is_not_finite_is_a_dash() -> None:
    assert (loss(1.5), loss(math.nan)) == ("1.500", "–")
    assert (number(0.12345), number(-1e-9, 3), number(-0.0), number(math.inf), number(None)) == (
        *("0.1235", "-1e-09", "0"),
        *("–", "–"),
    )


def test_amounts_are_written_in_full() -> None:
    assert [amount(value) for value in (1234567.0, 0.25, 10.0, 12.3456)] == ["1234567", "0.25", "10", "12.346"]
    small = (0.001, 0.00042, 1e-10, 0.0)
    assert [amount(value) for value in small] == ["0.001", "0.00042", "1e-10", "0"]
