"""The training set in a GPU's memory: views are made there, byte for byte as `batches` makes them.

The processor still draws what chance decides and cuts the obstacles; of a batch only these travel.
"""

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from pipeline.batches.augment import Augmentation
from pipeline.batches.views import Batch, ImageSet, View, to_device
from pipeline.data import obstacles, parts
from pipeline.labels import occlusion

MEMORY_SHARE = 0.25  # of the GPU's free memory, at most


def to_gpu(pictures: ImageSet, device: torch.device) -> "GPUImageSet | None":
    """The pictures in a GPU's memory; none on a CPU, or where there is too little room."""
    if device.type == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    fits = pictures.image.nbytes + pictures.parsing.nbytes <= MEMORY_SHARE * free
    return GPUImageSet(pictures, device) if fits else None


class GPUImageSet:
    """Pictures that lie on a device."""

    def __init__(self, pictures: ImageSet, device: torch.device):
        parts.check(pictures.parsing)
        arrays = (pictures.image, pictures.parsing, pictures.camid, pictures.pid)
        self.image, self.parsing, self.camid, self.pid = (torch.from_numpy(a).to(device) for a in arrays)
        self.device, self.threshold = device, pictures.threshold
        self.swapped = torch.tensor([range(len(parts.SWAPPED)), parts.SWAPPED]).to(device, torch.uint8)
        coarse = parts.COARSE[pictures.hidden.shape[1]].values()
        belongs = [[label in merged for merged in coarse] for label in range(len(parts.SWAPPED))]
        self.belongs = torch.tensor(belongs).to(device, torch.float32)  # fine label -> coarse part

    def pairs(self, rows: Int[np.ndarray, "B"], chances: list[Augmentation]) -> Batch:
        """A training batch, as `augment.training_batch` makes it."""
        size = self.parsing.shape[1:]
        pasted, covered = np.zeros((len(rows), *size, 3), np.uint8), np.zeros((len(rows), *size), bool)
        for n, chance in enumerate(chances):
            if chance.obstacle is not None:
                pasted[n], covered[n] = obstacles.paste(pasted[n], chance.obstacle, *chance.place)
        turns = np.array([chance.turn for chance in chances], np.int64)
        arrays = (rows, turns, pasted, covered)
        which, turn, obstacle, hides = (to_device(torch.from_numpy(a), self.device) for a in arrays)
        image, parsing = self._turned(which, *turn.unbind(1))
        return Batch(
            holistic=self._view(image, parsing),
            occluded=self._view(torch.where(hides[..., None], obstacle, image), parsing * ~hides),
            covered=hides,
            camid=self.camid[which],
            pid=self.pid[which],
        )

    def _turned(
        self,
        rows: Int[Tensor, "B"],
        mirrored: Int[Tensor, "B"],
        down: Int[Tensor, "B"],
        right: Int[Tensor, "B"],
    ) -> tuple[UInt8[Tensor, "B H W 3"], UInt8[Tensor, "B H W"]]:
        """Images and their labels, mirrored or not, then moved inside their frames."""
        height, width = self.parsing.shape[1:]
        y, inside_y = _sources(height, down)
        x, inside_x = _sources(width, right)
        x = torch.where(mirrored[:, None] > 0, width - 1 - x, x)
        place = rows[:, None, None], y[:, :, None], x[:, None]
        inside = inside_y[:, :, None] & inside_x[:, None]
        labels = self.swapped[mirrored[:, None, None], self.parsing[place].long()]
        return self.image[place] * inside[..., None], labels * inside

    def _view(self, image: UInt8[Tensor, "B H W 3"], maps: UInt8[Tensor, "B H W"]) -> View:
        fine = torch.stack([(maps == k).flatten(1).sum(1) for k in range(len(self.membership))], 1)
        counts = (fine.float() @ self.membership).long()  # exact: below 2^24
        return View(
            image.permute(0, 3, 1, 2), maps, occlusion.hidden_parts(counts, self.threshold, strict=True)
        )


def _sources(length: int, moved: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Where the rows or columns of moved pictures come from, and whether that lies inside."""
    source = torch.arange(length, device=moved.device) - moved[:, None]
    return source.clamp(0, length - 1), (source >= 0) & (source < length)
