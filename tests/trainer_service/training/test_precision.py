"""The choice of the dtype to train in."""

from __future__ import annotations

import pytest
import torch

from trainer_service.training import precision


def test_training_precision_is_what_was_asked_for_else_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    seconds = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(precision, "_product_seconds", lambda *dtypes: [seconds[dtype] for dtype in dtypes])
    assert precision.pick_training_dtype("bfloat16", cpu) == "bfloat16"
    for has_bfloat16, chosen in ((True, "auto"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has)
        assert precision.pick_training_dtype("auto", torch.device("cuda")) == chosen
    assert precision.pick_training_dtype("auto", cpu) == "float32"
    seconds[torch.bfloat16] = 0.95
    assert precision.pick_training_dtype("auto", cpu) == "float32", "a little faster is not worth its rounding"
    seconds[torch.bfloat16] = 0.2
    assert precision.pick_training_dtype("auto", cpu) == "bfloat16"
