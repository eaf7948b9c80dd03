"""OGFR (pipeline/methods/ogfr/model.py says what it is)."""

from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import PRESETS, WITHOUT_EFFECT, Params

__all__ = ["PRESETS", "WITHOUT_EFFECT", "Params", "build"]
