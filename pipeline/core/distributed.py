"""Several processes that learn as one: each takes its share of every batch, and all hold the same weights.

`torchrun` starts them, tells them apart, and stops all if one fails.  Losses are means over images, so the
mean of the processes' losses is the loss of the whole batch, and the mean of their gradients its gradient, if

- what one image's loss takes from other images (triplets, batch statistics) is gathered from all processes,
  gradients going back to where it came from;
- what is random is drawn for the whole batch everywhere, by equal generators, and each takes its share.

Gradients are averaged by torch's DistributedDataParallel while they come into being, a group's at a time.

A process that is alone is all of them: then every function here gives back what it was given.

The parsers' processes are started in the same way, and share a file's shards instead (`group`).
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.core.params import STRICT, BadInput, plural
from pipeline.core.resumable import ShardGroup

TIMEOUT = timedelta(days=365)  # while the first process waits for another run; torch's ends in minutes

Device = Literal["auto", "cpu", "cuda"]
Scope = Literal["batch", "process"]  # the images that meet: the whole batch's, or a process's share
_scope: ContextVar[Scope] = ContextVar("mined", default="batch")


@dataclass(frozen=True, config=STRICT)
class Processes:
    """How many processes of this machine share a stage's work, one per GPU; under torchrun its number counts."""

    segment: int = Field(ge=1)  # each computes some of the shards of a file; no result depends on it
    pose: int = Field(ge=1)
    train: int = Field(ge=1)  # each computes a slice of every batch


def world_size() -> int:
    """How many learn together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0; 0 alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_device(name: Device = "auto") -> torch.device:
    """Where this process computes: on the GPU of its own number; by `auto` on the CPU if there is none.

    Raises `BadInput` where a GPU is asked for, and there is none for it.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("params.yaml: device = 'cuda', but torch sees no GPU here. Set it to 'cpu'.")
    number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= there:
        raise BadInput(f"process {number} has no GPU: torch sees {there} here. Start no more processes.")
    return torch.device("cuda", number)


def parse_device(value: Any) -> torch.device:
    """The device that a caller names, which is there.  Raises `BadInput` for any other."""
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise BadInput(f"device = {value!r}: no such device. Choose cpu or cuda.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device = {value!r}: torch sees no such GPU here. Choose cpu, or another one.")
    return found


# ------------------------------------------------------------------ starting


def run_torchrun(wanted: int, module: str, words: Sequence[str], kind: str = "cuda") -> bool:
    """Run a module in so many processes of this machine, by torchrun; False if that needs no new ones.

    Under torchrun already, its number counts.  `kind` is where they compute, cuda or cpu.  Raises `BadInput`
    if one of them fails, or if there are GPUs for cuda, but fewer.
    """
    if wanted == 1 or dist.is_torchelastic_launched():
        return False
    if kind == "cuda" and torch.cuda.is_available() and wanted > torch.cuda.device_count():
        raise BadInput(
            f"params.yaml: processes.{module.rpartition('.')[2]} = {wanted}, but this machine has "
            f"{plural(torch.cuda.device_count(), 'GPU')}. Lower it."
        )
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun  # costs a second, and few need it

    try:
        torchrun(["--standalone", f"--nproc-per-node={wanted}", "-m", module, *words])
    except ChildFailedError:
        raise BadInput(
            f"{module}: one of {wanted} processes failed, as said above; all are stopped."
        ) from None
    return True


@contextmanager
def process_group(here: torch.device | None = None) -> Iterator[None]:
    """Be one of those that torchrun started; alone without it.

    They exchange tensors of the device `here`, else of `device()`.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    threading.Thread(target=_exit_with_launcher, args=(os.getppid(),), daemon=True).start()
    here = here or local_device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: it may wait for the others, and they for this one


def _exit_with_launcher(launcher: int) -> None:
    # torchrun gives each process a session of its own: what kills it outright would leave them at work
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


@contextmanager
def shard_group() -> Iterator[ShardGroup]:
    """Be one of those that torchrun started to fill the shards of a file; alone without it."""
    with process_group(torch.device("cpu")):
        yield ShardGroup(rank(), world_size(), broadcast_object)


# ------------------------------------------------------------------ shares of a batch


def local_slice(size: int) -> slice:
    """Which of `size` images are this process's."""
    each = size // world_size()
    return slice(rank() * each, (rank() + 1) * each)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        own = own.contiguous()
        every = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(every, own)
        return torch.cat(every)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # what every process's loss asks of every process's images
        return gradient[local_slice(len(gradient))]


def all_gather(own: Tensor, axis: int = 0) -> Tensor:
    """The shares of all along an axis, as the whole batch has them, with gradient."""
    return own if world_size() == 1 else _Gather.apply(own.movedim(axis, 0)).movedim(0, axis)


def sample_global(draw: Callable[[Tensor], Tensor], own: Tensor) -> Tensor:
    """This process's share of what `draw` makes of the whole batch: as one process would draw it."""
    whole = draw(all_gather(own.detach()))
    return whole[local_slice(len(whole))]


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over processes, without gradient."""
    if world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values / world_size()


class _ParamGroupModule(nn.Module):
    """Somebody's parameters, as a network that hands on a loss."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        super().__init__()
        self.own = nn.ParameterList(parameters)
        # one that no loss depends on, or torch warns that there is none
        self.idle = nn.Parameter(torch.zeros(1, device=parameters[0].device))

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def average_gradients(parameters: Sequence[nn.Parameter]) -> nn.Module:
    """What hands on a loss, and lets its `backward` leave the mean of all processes' gradients.

    A parameter that no process's loss depends on has none.
    """
    group = _ParamGroupModule(parameters)
    if world_size() == 1:
        return group
    # torch compares strides, even of dimensions of size 1, where they mean nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        group, find_unused_parameters=True, gradient_as_bucket_view=True, init_sync=False
    )


# ------------------------------------------------------------------ where images meet


@contextmanager
def mining_scope(scope: Scope) -> Iterator[None]:
    """Let losses that compare images compare those of the whole batch, or of the process's share alone."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


def gather_candidates(own: Tensor, axis: int = 0) -> Tensor:
    """What this process's images are compared with, along an axis (see `mined`)."""
    return all_gather(own, axis) if _scope.get() == "batch" else own


def sync_batch_norm(network: nn.Module) -> None:
    """Let each batch norm in training normalise by the whole batch, and every process run the same mean.

    torch's SyncBatchNorm does so on GPUs alone.
    """
    if world_size() == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda m, given: (all_gather(given[0]),) if m.training else None)
            module.register_forward_hook(
                lambda m, given, whole: whole[local_slice(len(whole))] if m.training else None
            )


# ------------------------------------------------------------------ never apart in silence


def broadcast_object(value: Any) -> Any:
    """What process 0 has; all wait for it."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def check_equal_across_ranks(what: str, value: Any) -> None:
    """Raise `BadInput` in every process unless all hold the same value."""
    if world_size() == 1:
        return
    held = [None] * world_size()
    dist.all_gather_object(held, value)
    if any(other != held[0] for other in held):
        raise BadInput(
            f"train: the {world_size()} processes differ in {what}: {', '.join(map(str, held))}. Give all "
            "the same files and versions, `.scratch` on a disk that they share, and GPUs of one kind."
        )


def check_equal_weights(network: nn.Module) -> None:
    """Raise `BadInput` in every process unless all have the same parameters, to the bit."""
    if world_size() > 1:
        sums = [p.detach().view(torch.int32).sum() for p in network.parameters()]
        check_equal_across_ranks("their weights", int(torch.stack(sums).sum()))
