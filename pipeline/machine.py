"""The machine at hand: its processor, what was measured on it once, and the memory that a process holds."""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

NAMED = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")  # a processor, in /proc/cpuinfo
TRIM, MAPPED = -1, -4  # of glibc's mallopt(3): what stays when memory is freed; how many blocks are mapped
NEVER, NONE = -1, 0
USUAL = {TRIM: 64 << 20, MAPPED: 65536}  # where glibc's own limits are once a large block was freed


def kind(device: torch.device) -> str:
    """Which processor computes there: equal kinds round numbers alike."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    named = [f"{name} {told[name]}" for name in NAMED if name in told] or [platform.processor()]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {', '.join(named)}"


# ------------------------------------------------------------------ measured once


def remembered(question: str, device: torch.device, measure: Callable[[], float]) -> float:
    """What `measure` found when this question was first asked on such a machine, by whichever process.

    A choice between two that are near each other hangs on the load of the moment, and the last digits of all
    that is computed hang on the choice: the same machine must choose alike each time.  Answers lie below
    `folder`, a file each; where it cannot be written, each process measures for itself.
    """
    asked = {"question": question, "machine": kind(device), "torch": torch.__version__}
    file = folder() / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.json"
    found = _answer(file)
    if found is None:
        found = measure()
        _publish(file, json.dumps({**asked, "found": found}, indent=1))
        found = _answer(file) or found  # another process's, if that was faster
    return found


def folder() -> Path:
    """`occluded-reid` in the user's folder for what can be made anew (`$XDG_CACHE_HOME`, or `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "occluded-reid"


def _answer(file: Path) -> float | None:
    try:
        return float(json.loads(file.read_text())["found"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        with contextlib.suppress(OSError):
            file.unlink()  # damaged: measured anew
        return None


def _publish(file: Path, text: str) -> None:
    """Let a file hold a text, whole from its first moment, unless there is one."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent) as beside:
            beside.write(text)
            beside.flush()
            os.link(beside.name, file)


# ------------------------------------------------------------------ memory


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within it, memory that tensors on a CPU leave stays with this process, for the next ones.

    glibc gives large blocks back to the system, which clears every page of them again before it hands them
    out: up to a sixth of the CPU time of a ViT-B's step in float32.  Other C libraries are left as they are.
    """
    _glibc("mallopt", TRIM, NEVER)
    _glibc("mallopt", MAPPED, NONE)
    try:
        yield
    finally:
        for limit, usual in USUAL.items():
            _glibc("mallopt", limit, usual)
        _glibc("malloc_trim", 0)


def _glibc(function: str, *words: int) -> None:
    if found := getattr(ctypes.CDLL(None), function, None):
        found(*words)
