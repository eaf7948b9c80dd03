"""The edge of a command: its words, and how bad input ends it."""

import inspect
import sys
from collections.abc import Callable

from pipeline.core.params import BadInput

# ------------------------------------------------------------------ the edge


def run_stage(main: Callable[..., None], words: list[str]) -> None:
    """Call a stage with the words of its command line; bad input ends in one clear message and status 1."""
    try:
        inspect.signature(main).bind(*words)
    except TypeError as error:
        sys.exit(f"{sys.argv[0]}: {error}; usage: {' '.join(inspect.signature(main).parameters)}")
    try:
        main(*words)
    except BadInput as error:
        sys.exit(str(error))
