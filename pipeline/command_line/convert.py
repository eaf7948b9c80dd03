"""Convert a checkpoint to plain tensors, without running what it holds.

Reads:
    file    a checkpoint of torch.save, or a TorchScript archive such as OpenAI's CLIP
Writes:
    out     the .safetensors file

Beside tensors, a checkpoint may hold the arguments of a training script (argparse.Namespace) and numbers of
NumPy, which are left out.  A file with anything else is refused, by the name of what it holds.
"""

from pathlib import Path

from safetensors.torch import save_file

from pipeline.core import torchscript, weights
from pipeline.core.files import atomic_write, check_file_path
from pipeline.core.params import BadInput, plural


def main(file: str, out: str) -> None:
    """Write the file, and print its size."""
    check_file_path(out)
    if Path(out).suffix != ".safetensors":
        raise BadInput(f"{out}: not a .safetensors file. Name it {Path(out).stem}.safetensors.")
    archive = Path(file).is_file() and torchscript.is_archive(file)
    tensors = torchscript.read(file) if archive else weights.read(file, weights.BESIDE)
    with atomic_write(out) as path:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    print(f"{out}: {plural(len(tensors), 'tensor')}, {Path(out).stat().st_size / 1e6:.1f} MB")
