"""The machine at hand: its processor, what was measured on it once, and the memory that a process holds."""

import contextlib
import ctypes
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

# limits of glibc's mallopt(3): bytes that stay when memory is freed; of a block that is mapped; mapped blocks
TRIM, THRESHOLD, MAPPED = -1, -3, -4
KEPT = {TRIM: -1, MAPPED: 0}  # all stays, nothing is mapped
USUAL = {TRIM: 64 << 20, THRESHOLD: 32 << 20, MAPPED: 65536}  # where glibc's own go as blocks are freed


def processor(device: torch.device) -> str:
    """What computes there, a GPU by its name, a CPU by its instructions: equal kinds round numbers alike."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = torch.cpu.get_capabilities()
    return f"{told['architecture']}: {' '.join(sorted(name for name in told if told[name] is True))}"


# ------------------------------------------------------------------ measured once


def remembered(question: str, device: torch.device, measure: Callable[[], float]) -> float:
    """What `measure` found when this question was first asked on such a machine, by whichever process.

    A choice between two that are near each other hangs on the load of the moment, and the last digits of all
    that is computed hang on the choice: the same machine must choose alike each time.  Answers lie below
    `folder`, a file each; where none can be written, each process measures for itself.
    """
    asked = {"question": question, "machine": processor(device), "torch": torch.__version__}
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
    except OSError:
        return None
    except (ValueError, KeyError, TypeError):
        with contextlib.suppress(OSError):
            file.unlink()  # damaged: measured anew
        return None


def _publish(file: Path, text: str) -> None:
    """Let a file hold a text, whole from its first moment, unless there is one."""
    if not file.is_absolute():
        return  # a user without a home
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent) as beside:
            beside.write(text)
            beside.flush()
            os.link(beside.name, file)


# ------------------------------------------------------------------ memory


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within it, memory that the main thread's tensors on a CPU leave stays with the process, for the next.

    For a process that does nothing else, as the limits are all its threads': glibc gives large blocks back to
    the system, which clears every page of them again before it hands them out, up to a sixth of the CPU time
    of a ViT-B's step in float32.  Afterwards the limits are the usual ones, not those that a user had set
    by `MALLOC_*`.  Other C libraries are left as they are.
    """
    _mallopt(KEPT)
    try:
        yield
    finally:
        _mallopt(USUAL)
        _glibc("malloc_trim", 0)


def _mallopt(limits: dict[int, int]) -> None:
    for limit, value in limits.items():
        _glibc("mallopt", limit, value)


def _glibc(function: str, *words: int) -> None:
    if found := getattr(ctypes.CDLL(None), function, None):
        found(*words)
