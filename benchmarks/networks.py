"""What passes through the networks: how long they take, and what they answered, to be played again.

A network is the outermost module that has weights; everything it calls counts as inside it. Nothing has to be
known about the code that calls it.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Inside:
    """CPU seconds of this process inside networks, and the networks' answers if they are kept."""

    def __init__(self) -> None:
        self.seconds, self.answers = 0.0, []


@contextmanager
def timed(keep: bool = False) -> Iterator[Inside]:
    """Within the block, the time of every network's call is added up; `keep` keeps what they return."""
    inside = Inside()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        answer = original(module, *args, **kwargs)
        inside.seconds += time.process_time() - start
        if keep:
            inside.answers.append(copy.deepcopy(answer))
        return answer

    with _outermost(call) as original:
        yield inside


@contextmanager
def replayed(answers: list[Any]) -> Iterator[None]:
    """Within the block, networks are not run: each call returns the next of `answers`."""
    left = deque(copy.deepcopy(answers))
    with _outermost(lambda module, *args, **kwargs: left.popleft()):
        yield
    assert not left, f"{len(left)} answers were not num_tokens for"


@contextmanager
def _outermost(call: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    original, within = nn.Module.__call__, [False]

    def dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if within[0] or next(module.parameters(), None) is None:
            return original(module, *args, **kwargs)
        within[0] = True
        try:
            return call(module, *args, **kwargs)
        finally:
            within[0] = False

    nn.Module.__call__ = dispatch
    try:
        yield original
    finally:
        nn.Module.__call__ = original
