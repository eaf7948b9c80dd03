"""Ctrl-C ends a command with a sentence; nobody wants to debug it."""

import sys
from types import TracebackType

SENTENCE = "Interrupted. No result is half-written: run the same command again."


def say_on_interrupt() -> None:
    """From now on, an interrupt that nothing catches prints the sentence, such as one during slow imports."""
    sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{SENTENCE}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
