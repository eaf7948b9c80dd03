"""OGFR (pipeline/methods/ogfr/model.py says what it is)."""

from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import PRESETS, Params

__all__ = ["PRESETS", "Params", "build"]
