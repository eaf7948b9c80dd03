"""Checkpoints of a training: all that the next step depends on, written every so many seconds.

`state.pt` holds plain tensors and numbers and is loaded with `weights_only`; it is replaced whole.
`log.jsonl` has one line per step while training runs: `tail -f .scratch/train-*/log.jsonl`.
"""

import dataclasses
import json
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core import distributed
from pipeline.core.files import DeferredErrorFile, atomic_write, disk_full_as_error
from pipeline.core.params import BadInput, one_line
from pipeline.core.torchscript import DAMAGE
from pipeline.training.loop import Loop


@dataclasses.dataclass
class BestEpoch:
    """The best epoch so far: its mAP on the held-out identities, in [0, 1], and its weights."""

    score: float
    weights: dict[str, Tensor]


class Checkpoints:
    """The latest state of a training, in a folder, written every `every` seconds."""

    def __init__(self, folder: str | Path, every: float):
        self.state, self.log, self.every = Path(folder) / "state.pt", Path(folder) / "log.jsonl", every
        self.last_write = time.monotonic()

    def resume(self, loop: Loop, rng: np.random.Generator) -> BestEpoch | None:
        """Restore what the last `write` saved, if anything, and cut the log to it.

        Raises `BadInput` if the file is damaged.
        """
        self.last_write = time.monotonic()
        saved = self._read() if self.state.exists() else None
        steps = len(saved["log"]) if saved else 0
        distributed.check_equal_across_ranks("the steps that were saved", steps)
        loop.log[:] = saved["log"] if saved else []
        if distributed.rank() == 0:
            self._cut_log(steps)
        if saved is None:
            return None
        _restore(saved, loop, rng)
        return BestEpoch(**saved["best"]) if saved["best"] else None

    def _cut_log(self, steps: int) -> None:
        with open(self.log, "ab+") as file:  # at no moment shorter than that: this run may be killed too
            file.seek(0)
            file.truncate(sum(map(len, islice(file, steps))))

    def _read(self) -> dict[str, Any]:
        try:
            saved = torch.load(self.state, map_location="cpu", weights_only=True)
            lines = self.log.read_text().splitlines()[: saved["steps"]]
            if len(lines) < saved["steps"]:
                raise ValueError(f"{self.log.name} ends before it")
            return {**saved, "log": [json.loads(line) for line in lines]}
        except DAMAGE as error:
            raise BadInput(
                f"{self.state}: cannot be read ({one_line(error)}). "
                f"Delete {self.state.parent} to train from the start."
            ) from None

    def step(self, loop: Loop, rng_state: dict[str, Any], best: BestEpoch | None) -> None:
        """Append the last step to the log, and write the state if it is time; only rank 0 does.

        `rng_state` is the state of the batches' generator after the step's batch, whatever was prefetched.
        """
        if distributed.rank():
            return
        with disk_full_as_error(self.log), open(self.log, "a") as file:
            file.write(json.dumps(loop.log[-1]) + "\n")
        if time.monotonic() - self.last_write >= self.every:
            self.write(loop, rng_state, best)
            self.last_write = time.monotonic()

    def write(self, loop: Loop, rng_state: dict[str, Any], best: BestEpoch | None) -> None:
        """Replace the state by the one after the last step of the log."""
        with disk_full_as_error(self.log), open(self.log, "a") as file:
            os.fsync(file.fileno())  # the log must reach as far as the state does
        with atomic_write(self.state) as beside, DeferredErrorFile(beside, "w") as file:
            torch.save(_state(loop, rng_state, best), file)


def _state(loop: Loop, rng_state: dict[str, Any], best: BestEpoch | None) -> dict[str, Any]:
    return {
        "steps": len(loop.log),
        "method": loop.method.state_dict(),
        "optimisers": {name: o.state_dict() for name, o in loop.optimisers.items()},
        "scalers": {name: s.state_dict() for name, s in loop.scalers.items()},
        "best": vars(best) if best else None,
        "numpy": json.dumps(rng_state),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if loop.device.type == "cuda" else None,
    }


def _restore(saved: dict[str, Any], loop: Loop, rng: np.random.Generator) -> None:
    loop.method.load_state_dict(saved["method"])
    for name, optimiser in loop.optimisers.items():
        optimiser.load_state_dict(saved["optimisers"][name])
        loop.scalers[name].load_state_dict(saved["scalers"][name])
    rng.bit_generator.state = json.loads(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    if loop.device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"])
