"""What a run leaves for the one that follows a kill: all that the next step depends on, written now and then.

`state.pt` holds plain tensors and numbers and is loaded as such, no code in it is run; it is replaced whole.
`log.jsonl` has a line a step while training goes on: `tail -f .scratch/train-*/log.jsonl`.
"""

import json
import os
import pickle
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core import distributed
from pipeline.core.files import DeferredErrorFile, atomic_write, disk_full_as_error
from pipeline.core.params import BadInput
from pipeline.training.loop import Loop


@dataclass
class BestEpoch:
    """The epoch to keep, so far: its score on the identities held out, and its weights."""

    score: float
    epoch: int
    weights: dict[str, Tensor]


class Checkpoints:
    """The state of a training in a folder of its own, written every so many seconds."""

    def __init__(self, folder: str | Path, every: float):
        self.state, self.rows, self.every = Path(folder) / "state.pt", Path(folder) / "log.jsonl", every
        self.clock = time.monotonic()

    def resume(self, loop: Loop, rng: np.random.Generator) -> BestEpoch | None:
        """Put back what the last `write` saved, if any, and cut the log to it.

        Raises `BadInput` if the file is damaged.
        """
        self.clock = time.monotonic()
        held = self._read() if self.state.exists() else None
        distributed.check_equal_across_ranks("the steps that were saved", len(held["log"]) if held else 0)
        loop.log[:] = held["log"] if held else []
        if distributed.rank() == 0:
            self._cut(len(loop.log))
        if held is None:
            return None
        _restore(held, loop, rng)
        return BestEpoch(**held["best"]) if held["best"] else None

    def _cut(self, steps: int) -> None:
        with open(self.rows, "ab+") as file:  # never shorter than that, should this be killed too
            file.seek(0)
            file.truncate(sum(map(len, islice(file, steps))))

    def _read(self) -> dict[str, Any]:
        try:
            held = torch.load(self.state, map_location="cpu", weights_only=True)
            lines = self.rows.read_text().splitlines()[: held["steps"]]
            if len(lines) < held["steps"]:
                raise ValueError(f"{self.rows.name} ends before it")
            return {**held, "log": [json.loads(line) for line in lines]}
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise BadInput(
                f"{self.state}: cannot be read ({' '.join(str(error).split())[:160]}). "
                f"Delete {self.state.parent} to train from the start."
            ) from None

    def step(self, loop: Loop, drawn: dict[str, Any], best: BestEpoch | None) -> None:
        """Note the step that was taken; write the state if it is time.  Process 0 does.

        `drawn` is the state of the batches' generator after the step's batch, whatever was drawn ahead.
        """
        if distributed.rank():
            return
        with disk_full_as_error(self.rows), open(self.rows, "a") as file:
            file.write(json.dumps(loop.log[-1]) + "\n")
        if time.monotonic() - self.clock >= self.every:
            self.write(loop, drawn, best)
            self.clock = time.monotonic()

    def write(self, loop: Loop, drawn: dict[str, Any], best: BestEpoch | None) -> None:
        """Replace the state by the one after the last step of the log."""
        with disk_full_as_error(self.rows), open(self.rows, "a") as file:
            os.fsync(file.fileno())  # the log must reach as far as the state does
        with atomic_write(self.state) as beside, DeferredErrorFile(beside, "w") as file:
            torch.save(_state(loop, drawn, best), file)


def _state(loop: Loop, drawn: dict[str, Any], best: BestEpoch | None) -> dict[str, Any]:
    return {
        "steps": len(loop.log),
        "method": loop.method.state_dict(),
        "optimisers": {name: o.state_dict() for name, o in loop.optimisers.items()},
        "scalers": {name: s.state_dict() for name, s in loop.scalers.items()},
        "best": vars(best) if best else None,
        "numpy": json.dumps(drawn),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if loop.device.type == "cuda" else None,
    }


def _restore(held: dict[str, Any], loop: Loop, rng: np.random.Generator) -> None:
    loop.method.load_state_dict(held["method"])
    for name, optimiser in loop.optimisers.items():
        optimiser.load_state_dict(held["optimisers"][name])
        loop.scalers[name].load_state_dict(held["scalers"][name])
    rng.bit_generator.state = json.loads(held["numpy"])
    torch.set_rng_state(held["torch"])
    if loop.device.type == "cuda":
        torch.cuda.set_rng_state(held["cuda"])
