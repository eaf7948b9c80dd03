"""FED (pipeline/methods/fed/model.py says what it is)."""

from pipeline.methods.fed.model import build
from pipeline.methods.fed.params import PRESETS, WITHOUT_EFFECT, Params

__all__ = ["PRESETS", "WITHOUT_EFFECT", "Params", "build"]
