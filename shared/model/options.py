"""How a base model is loaded: settings of every process that loads one, parsed once and passed on whole."""

from __future__ import annotations

from typing import Literal

from shared.settings_part import SettingsPart

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]


class ModelOptions(SettingsPart):
    """The options of `shared.model.base_model.load`; each is a setting of both services."""

    dtype: DType = "auto"
    """Number format of the base model: auto (bfloat16 if the hardware is fast at it), float32, bfloat16 or float16."""
    device: Device = "auto"
    """Device that computes: auto, cpu or cuda. A trainer on a Ray cluster that must first add a GPU node needs `cuda`.
    """


DEFAULTS = ModelOptions()
