"""The training set in a GPU's memory, where views are made byte for byte as `augment` makes them.

The CPU still samples the augmentations and cuts the obstacles.  Only these travel with each batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from pipeline.batches.augment import Augmentation
from pipeline.batches.jitter import apply_jitter
from pipeline.batches.views import Batch, ImageSet, View, to_device
from pipeline.data import obstacles, parts
from pipeline.labels import occlusion

MEMORY_SHARE = 0.25  # of the GPU's free memory, at most


def image_set_on_gpu(image_set: ImageSet, device: torch.device) -> "GPUImageSet | None":
    """The image set in a GPU's memory; `None` for a CPU, or if it exceeds `MEMORY_SHARE`."""
    if device.type == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    fits = image_set.image.nbytes + image_set.parsing.nbytes <= MEMORY_SHARE * free
    return GPUImageSet(image_set, device) if fits else None


class GPUImageSet:
    """An `ImageSet` whose arrays are tensors on a device."""

    def __init__(self, image_set: ImageSet, device: torch.device):
        parts.check(image_set.parsing)
        arrays = (image_set.image, image_set.parsing, image_set.camid, image_set.pid)
        self.image, self.parsing, self.camid, self.pid = (torch.from_numpy(a).to(device) for a in arrays)
        self.device, self.threshold = device, image_set.threshold
        self.swapped = torch.tensor([range(len(parts.SWAPPED)), parts.SWAPPED]).to(device, torch.uint8)
        coarse = parts.COARSE[image_set.hidden.shape[1]].values()
        membership = [[label in fine for fine in coarse] for label in range(len(parts.SWAPPED))]
        self.membership = torch.tensor(membership).to(device, torch.float32)  # fine label -> coarse part

    def training_batch(self, rows: Int[np.ndarray, "B"], augmentations: Sequence[Augmentation]) -> Batch:
        """The training batch of these rows, as `augment.training_batch` makes it."""
        size = self.parsing.shape[1:]
        pasted, covered = np.zeros((len(rows), *size, 3), np.uint8), np.zeros((len(rows), *size), bool)
        for n, (_, obstacle, position, _) in enumerate(augmentations):
            if obstacle is not None:
                pasted[n], covered[n] = obstacles.paste(pasted[n], obstacle, *position)
        flip_crops = np.array([augmentation.flip_crop for augmentation in augmentations], np.int64)
        arrays = (rows, flip_crops, pasted, covered)
        row, flip_crop, pixels, cover = (to_device(torch.from_numpy(a), self.device) for a in arrays)
        image, jitters = self.image[row], [a.jitter for a in augmentations if a.jitter is not None]
        image = apply_jitter(image, jitters) if jitters else image
        image, parsing = self._flip_crop(image, self.parsing[row], *flip_crop.unbind(1))
        return Batch(
            holistic=self._view(image, parsing),
            occluded=self._view(torch.where(cover[..., None], pixels, image), parsing * ~cover),
            covered=cover,
            camid=self.camid[row],
            pid=self.pid[row],
        )

    def _flip_crop(
        self,
        image: UInt8[Tensor, "B H W 3"],
        parsing: UInt8[Tensor, "B H W"],
        flipped: Int[Tensor, "B"],
        down: Int[Tensor, "B"],
        right: Int[Tensor, "B"],
    ) -> tuple[UInt8[Tensor, "B H W 3"], UInt8[Tensor, "B H W"]]:
        """Images and parsing maps, flipped or not, then shifted inside their frames."""
        height, width = parsing.shape[1:]
        y, inside_y = _source_indices(height, down)
        x, inside_x = _source_indices(width, right)
        x = torch.where(flipped[:, None] > 0, width - 1 - x, x)
        source = torch.arange(len(image), device=image.device)[:, None, None], y[:, :, None], x[:, None]
        inside = inside_y[:, :, None] & inside_x[:, None]
        labels = self.swapped[flipped[:, None, None], parsing[source].long()]
        return image[source] * inside[..., None], labels * inside

    def _view(self, image: UInt8[Tensor, "B H W 3"], maps: UInt8[Tensor, "B H W"]) -> View:
        fine = torch.stack([(maps == k).flatten(1).sum(1) for k in range(len(self.membership))], 1)
        counts = (fine.float() @ self.membership).long()  # exact: below 2^24
        return View(
            image.permute(0, 3, 1, 2), maps, occlusion.hidden_parts(counts, self.threshold, strict=True)
        )


def _source_indices(length: int, shift: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Index of the row or column that each one of a shifted image comes from, and whether it exists."""
    source = torch.arange(length, device=shift.device) - shift[:, None]
    return source.clamp(0, length - 1), (source >= 0) & (source < length)
