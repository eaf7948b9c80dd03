"""Shapes and types in the signatures of `pipeline` are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("pipeline", "beartype.beartype")
