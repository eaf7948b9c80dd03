"""Calls of neural networks: the time inside them, and their outputs, recorded and replayed.

A network is the outermost module that has weights; everything that it calls counts as inside it.  The code
that calls it need not be known.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class NetworkCalls:
    """CPU seconds of this process inside networks, and the networks' outputs if they are kept."""

    def __init__(self) -> None:
        self.seconds, self.outputs = 0.0, []


@contextmanager
def record(keep: bool = False) -> Iterator[NetworkCalls]:
    """Within the block, the time of every network call is added up; with `keep`, outputs are kept."""
    calls = NetworkCalls()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        output = original(module, *args, **kwargs)
        calls.seconds += time.process_time() - start
        if keep:
            calls.outputs.append(copy.deepcopy(output))
        return output

    with _intercept_outermost(call) as original:
        yield calls


@contextmanager
def replay(outputs: list[Any]) -> Iterator[None]:
    """Within the block, networks are not run: each call returns the next of `outputs`."""
    queue = deque(copy.deepcopy(outputs))
    with _intercept_outermost(lambda module, *args, **kwargs: queue.popleft()):
        yield
    assert not queue, f"{len(queue)} outputs were not used"


@contextmanager
def _intercept_outermost(call: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    original, is_inside = nn.Module.__call__, [False]

    def dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_inside[0] or next(module.parameters(), None) is None:
            return original(module, *args, **kwargs)
        is_inside[0] = True
        try:
            return call(module, *args, **kwargs)
        finally:
            is_inside[0] = False

    nn.Module.__call__ = dispatch
    try:
        yield original
    finally:
        nn.Module.__call__ = original
