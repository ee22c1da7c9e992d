"""The collector is paused for a block, and afterwards as it was before."""

from __future__ import annotations

import gc

import pytest

from shared.process.garbage import paused_collector


def test_it_is_paused_for_the_block_and_goes_on_after_it_and_after_an_error() -> None:
    with paused_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), paused_collector():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    with paused_collector(), paused_collector():
        pass
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
