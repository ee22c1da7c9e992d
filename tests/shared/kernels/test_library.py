"""The structures and signatures that are read from the C header."""

from __future__ import annotations

import ctypes

import pytest

from shared.kernels import library

HEADER = """/* A header; of two lines. */
#pragma once
typedef struct {
  const void *panels; /* bytes; */
  int64_t in, out;
  float scale;
} Weights;
typedef struct {
  Weights head;
  const Weights *layers, *last;
} Decoder;
int step(const Decoder *decoder, double number,
         uint16_t *out, int threads);
void rest(Weights weights);
"""


def test_structures_and_signatures_are_those_of_the_header() -> None:
    structures, functions = library.declarations(HEADER)
    weights, decoder = structures["Weights"], structures["Decoder"]
    assert [*weights._fields_] == [
        ("panels", ctypes.c_void_p),
        ("in", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("scale", ctypes.c_float),
    ]
    pointer = ctypes.POINTER(weights)
    assert [*decoder._fields_] == [("head", weights), ("layers", pointer), ("last", pointer)]
    arguments = (ctypes.POINTER(decoder), ctypes.c_double, ctypes.c_void_p, ctypes.c_int)
    assert functions == {"step": (ctypes.c_int, arguments), "rest": (None, (weights,))}


@pytest.mark.parametrize("field", ["int64_t sizes[4];", "unsigned count : 3;", "uint32_t count;"])
def test_a_declaration_of_another_form_is_not_guessed(field: str) -> None:
    with pytest.raises(ValueError, match=f"can't read .*{field.split()[0]}"):
        library.declarations("typedef struct {" + field + "} Other;")
