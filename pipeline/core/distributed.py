"""Data-parallel training: each process computes a slice of every batch, and all hold the same weights.

`torchrun` starts the processes, numbers them, and stops all if one fails.  Losses are means over images.  The
mean of the processes' losses is then the loss of the whole batch, and the mean of their gradients its
gradient, if

- what the loss of one image takes from other images (triplets, batch statistics) is gathered from all
  processes, and gradients flow back to them;
- random numbers are drawn for the whole batch in every process, by equal generators, and sliced.

DistributedDataParallel averages the gradients of one parameter group at a time, during `backward`.

Without torchrun the world size is 1, and these functions leave every value as it is.

The parsers' processes are started in the same way; they share the shards of a file (`shard_group`).
"""

import os
import signal
import sys
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

TIMEOUT = timedelta(days=365)  # rank 0 may wait for another run; torch's default is minutes

Device = Literal["auto", "cpu", "cuda"]
Scope = Literal["batch", "process"]  # images that losses compare: of the whole batch, or of the local slice
_scope: ContextVar[Scope] = ContextVar("mining_scope", default="batch")
_images: ContextVar[int | None] = ContextVar("local_images", default=None)


@dataclass(frozen=True, config=STRICT)
class Processes:
    """How many processes of this machine compute a stage, one per GPU; torchrun's number has precedence."""

    segment: int = Field(ge=1)  # each computes some of the shards of a file; no result depends on it
    pose: int = Field(ge=1)
    train: int = Field(ge=1)  # each computes a slice of every batch


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_device(name: Device = "auto") -> torch.device:
    """This process's device: the GPU of its local rank; `auto` is the CPU on a machine without GPUs.

    Raises `BadInput` if a GPU is asked for and this process has none.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("params.yaml: device = 'cuda', but torch sees no GPU here. Set it to 'cpu'.")
    local_rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank >= count:
        raise BadInput(f"process {local_rank} has no GPU: torch sees {count} here. Start no more processes.")
    return torch.device("cuda", local_rank)


def parse_device(value: Any) -> torch.device:
    """The device called `cpu`, `cuda` or `cuda:1`.  Raises `BadInput` if this machine has no such device."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadInput(f"device = {value!r}: no such device. Choose cpu or cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device = {value!r}: torch sees no such GPU here. Choose cpu, or another one.")
    return device


# ------------------------------------------------------------------ starting


def run_torchrun(processes: int, module: str, words: Sequence[str], device: str = "cuda") -> bool:
    """Run a module in `processes` processes of this machine by torchrun, and wait.

    Returns False, and runs nothing, for one process and under torchrun, whose number has precedence.
    `device` is the type of device on which they compute, `cuda` or `cpu`.  Raises `BadInput` if one fails,
    or if the machine has GPUs, but fewer.
    """
    if processes == 1 or dist.is_torchelastic_launched():
        return False
    if device == "cuda" and torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise BadInput(
            f"params.yaml: processes.{module.rpartition('.')[2]} = {processes}, but this machine has "
            f"{plural(torch.cuda.device_count(), 'GPU')}. Lower it."
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun  # importing it takes a second

    try:
        torchrun(["--standalone", f"--nproc-per-node={processes}", "-m", module, *words])
    except ChildFailedError:
        raise BadInput(
            f"{module}: one of {processes} processes failed, as said above; all are stopped."
        ) from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + error.sigval)  # as a shell says it
    return True


@contextmanager
def process_group(device: torch.device | None = None) -> Iterator[None]:
    """Join the processes that torchrun started; do nothing without it.

    Collectives run on tensors of `device`, by default `local_device()`: NCCL for GPUs, Gloo for the CPU.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    threading.Thread(target=_exit_with_launcher, args=(os.getppid(),), daemon=True).start()
    device = device or local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: processes might wait for each other


def _exit_with_launcher(launcher: int) -> None:
    # torchrun starts each process in a new session: SIGKILL of torchrun would leave them running
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


@contextmanager
def shard_group() -> Iterator[ShardGroup]:
    """Join the processes that torchrun started to compute the shards of a file; a group of one without it."""
    with process_group(torch.device("cpu")):
        yield ShardGroup(rank(), world_size(), broadcast_object)


# ------------------------------------------------------------------ slices of a batch


def local_slice(size: int) -> slice:
    """This process's slice of a batch of `size` images, which the world size must divide."""
    length = size // world_size()
    return slice(rank() * length, (rank() + 1) * length)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        slices = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(slices, local)
        return torch.cat(slices)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # of every process's loss
        return gradient[local_slice(len(gradient))]


def all_gather(local: Tensor, axis: int = 0) -> Tensor:
    """All processes' slices, concatenated along an axis in the order of the batch, with gradient."""
    return local if world_size() == 1 else _Gather.apply(local.movedim(axis, 0)).movedim(0, axis)


def sample_global(sample: Callable[[Tensor], Tensor], local: Tensor) -> Tensor:
    """The local slice of what `sample` draws for the whole batch, whatever the world size."""
    batch = sample(all_gather(local.detach()))
    return batch[local_slice(len(batch))]


@contextmanager
def local_images(count: int) -> Iterator[None]:
    """Let `sample_rows` know how many images this process's slice of the batch has."""
    token = _images.set(count)
    try:
        yield
    finally:
        _images.reset(token)


def sample_rows(sample: Callable[[int, int], Tensor], rows: int) -> Tensor:
    """The local rows of what `sample` draws for the whole batch, whatever the world size.

    Rows are the images of the local slice, or several views of them one after the other (`local_images`).
    `sample` takes the numbers of views and of images in the whole batch, and draws a value for each.
    """
    images = _images.get() or rows
    drawn = sample(rows // images, images * world_size())
    return drawn[:, local_slice(drawn.shape[1])].flatten()


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over processes, without gradient."""
    if world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values / world_size()


class _ParamGroupModule(nn.Module):
    """A module with a param group's parameters, whose forward is the identity of a loss."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        super().__init__()
        self.group = nn.ParameterList(parameters)
        # no loss depends on it: torch warns if find_unused_parameters finds none
        self.unused = nn.Parameter(torch.zeros(1, device=parameters[0].device))

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def average_gradients(parameters: Sequence[nn.Parameter]) -> nn.Module:
    """A module to pass a loss through, whose `backward` leaves the mean of all processes' gradients.

    A parameter that no process's loss depends on has no gradient.
    """
    group = _ParamGroupModule(parameters)
    if world_size() == 1:
        return group
    # torch compares the strides of dimensions of size 1, too, which mean nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        group, find_unused_parameters=True, gradient_as_bucket_view=True, init_sync=False
    )


# ------------------------------------------------------------------ losses that compare images


@contextmanager
def mining_scope(scope: Scope) -> Iterator[None]:
    """Let losses that compare images compare those of the whole batch, or of the local slice."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


def gather_candidates(local: Tensor, axis: int = 0) -> Tensor:
    """The rows with which this process's images are compared, along an axis (see `mining_scope`)."""
    return all_gather(local, axis) if _scope.get() == "batch" else local


def sync_batch_norm(network: nn.Module) -> None:
    """Let batch norms in training use the statistics of the whole batch; running means are then equal.

    torch's SyncBatchNorm does so on GPUs only.
    """
    if world_size() == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda m, x: (all_gather(x[0]),) if m.training else None)
            module.register_forward_hook(lambda m, x, y: y[local_slice(len(y))] if m.training else None)


# ------------------------------------------------------------------ equal in every process


def broadcast_object(value: Any) -> Any:
    """Rank 0's value; every process waits for it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def check_equal_across_ranks(name: str, value: Any) -> None:
    """Raise `BadInput`, which names the value, in every process unless all have the same value."""
    if world_size() == 1:
        return
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    if any(other != values[0] for other in values):
        raise BadInput(
            f"train: the {world_size()} processes differ in {name}: {', '.join(map(str, values))}. Give all "
            "the same files and versions, `.scratch` on a disk that they share, and GPUs of one kind."
        )


def check_equal_weights(network: nn.Module) -> None:
    """Raise `BadInput` in every process unless all have the same parameters, to the bit."""
    if world_size() > 1:
        sums = [p.detach().view(torch.int32).sum() for p in network.parameters()]
        check_equal_across_ranks("their weights", int(torch.stack(sums).sum()))
