"""What contaminates a holistic picture: a bystander beside the target, or a parcel that the target carries.

The target stays holistic: the bystander stands behind it, and the parcel hides at most `MAX_HIDDEN` of it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from pipeline.synthetic.cameras import Camera
from pipeline.synthetic.figures import HEIGHT, WIDTH, Figure, Placement, paint_figure
from pipeline.synthetic.overlay import Layer, Overlay, sample_paint
from pipeline.synthetic.people import sample_person

MAX_HIDDEN = 0.15  # share of the target that a parcel hides; an occluder hides more
SHRINK = 0.85  # factor on a parcel that hides too much


class Contamination(NamedTuple):
    """One of two kinds: a figure that is painted before the target, or a parcel after it."""

    rng: np.random.Generator
    is_bystander: bool

    def bystander(self, camera: Camera) -> Figure:
        """Another person beside the target, as near to the camera as the target itself."""
        rng = self.rng
        height, ground = HEIGHT * rng.uniform(0.85, 0.95), HEIGHT * rng.uniform(0.93, 0.97)
        x = WIDTH * (0.5 + rng.choice((-1, 1)) * rng.uniform(0.28, 0.45))
        yaw = float(rng.uniform(-np.pi, np.pi))
        return paint_figure(rng, sample_person(rng), camera, Placement(x, ground, height, yaw))

    def parcel(self, target: Bool[np.ndarray, "H W"]) -> Layer:
        """A parcel before the trunk and beyond it to one side."""
        rng = self.rng
        rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
        tall, wide = len(rows), len(columns)
        y = rows[0] + tall * rng.uniform(0.3, 0.5)
        x = columns[0] + wide * (0.5 + rng.choice((-1, 1)) * rng.uniform(0.15, 0.5))
        half = np.array((wide * rng.uniform(0.25, 0.5), tall * rng.uniform(0.06, 0.12)))
        paint, shade = sample_paint(rng), float(rng.uniform(0, 0.2))
        while True:
            overlay = Overlay(*target.shape)
            overlay.box(x - half[0], y - half[1], x + half[0], y + half[1], paint)
            hidden = (overlay.finish()[2] & target).sum()
            if hidden <= MAX_HIDDEN * target.sum():
                break
            half *= SHRINK
        overlay.shade(rng, across=True, amount=shade)
        return overlay.finish()


def sample_contamination(rng: np.random.Generator) -> Contamination:
    """A bystander or a parcel, equally likely, drawn by `rng`."""
    return Contamination(rng, bool(rng.random() < 0.5))
