"""Numbers for people."""

from __future__ import annotations

import math

from softprompt.report.words import loss, number


def test_what_is_not_finite_is_a_dash() -> None:
    assert (loss(1.5), loss(math.nan)) == ("1.500", "–")
    assert (number(0.12345), number(-1e-9, 3), number(-0.0), number(math.inf), number(None)) == (
        *("0.1235", "-1e-09", "0"),
        *("–", "–"),
    )
