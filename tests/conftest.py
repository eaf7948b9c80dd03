"""Shapes and types in the signatures of `pipeline` are checked while the tests run; nobody's clock is."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("pipeline", "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # the first example of a test may compile a kernel
settings.load_profile("untimed")
