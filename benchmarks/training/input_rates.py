"""Input: images per second of one core, by TransReID's transforms and by our batches."""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.complexity.counts import OCCLUDED_DUKE
from benchmarks.samples import held_out_samples
from benchmarks.training.modes import read_params
from benchmarks.training.transreid import training_dataset
from pipeline.batches.augment import random_flip_crop, sample_augmentations, training_batch
from pipeline.batches.views import Batch, ImageSet, resize_images
from pipeline.data.index import decode_fast
from pipeline.methods.ogfr.params import PRESETS
from pipeline.methods.presets import resolve
from pipeline.training.schedule import Schedule

CROPS = 64


def measure_input(checkout: Path, rounds: int) -> dict[str, Any]:
    """Images per second of one core: TransReID's transforms, and ours with and without the cache.

    The images are crops of Market-1501's size, enlarged to 256 x 128.  A pair of ours is two views with their
    parsing maps.
    """
    crops = [_crop(jpeg) for _, jpeg, _ in held_out_samples(CROPS)]
    with tempfile.TemporaryDirectory() as folder:
        for number, jpeg in enumerate(crops):
            (Path(folder) / f"{number}.jpg").write_bytes(jpeg)
        dataset = training_dataset(checkout, [(f"{folder}/{n}.jpg", n, 0, 0) for n in range(CROPS)])
        schedule = resolve(read_params("train", Schedule), PRESETS, "recommended", "train")
        cached, rows, rng = random_images(CROPS), np.arange(CROPS), np.random.default_rng(0)

        def views(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # and their parsing maps
            return random_flip_crop(images, cached.parsing, rows, schedule.flip, schedule.pad, rng)

        def decoded() -> np.ndarray:
            resized = np.empty_like(cached.image)
            resize_images([decode_fast(jpeg) for jpeg in crops], resized)
            return resized

        def pairs() -> Batch:
            augmentations = sample_augmentations(
                cached, rows, schedule.flip, schedule.pad, schedule.obstacles, {}, rng
            )
            return training_batch(cached, rows, augmentations)

        runs: dict[str, Callable[[], Any]] = {
            "theirs": lambda: torch.stack([dataset[n][0] for n in range(CROPS)]),
            "ours_cached_view": lambda: views(cached.image),
            "ours_decoded_view": lambda: views(decoded()),
            "ours_cached_pair": pairs,
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(3 * rounds):
            for name, run in runs.items():
                start = time.process_time()
                run()
                seconds[name].append((time.process_time() - start) / CROPS)
    least = {name: min(values) for name, values in seconds.items()}
    return {
        "images_per_s": {name: round(1 / value) for name, value in least.items()},
        "ours_to_theirs": {n: round(least["theirs"] / s, 2) for n, s in least.items() if n != "theirs"},
    }


def _crop(jpeg: bytes) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg)) as image:
        image.resize((64, 128), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def random_images(count: int) -> ImageSet:
    """Noise of the model's input size, two images per identity."""
    rng, size = np.random.default_rng(0), OCCLUDED_DUKE.size
    return ImageSet(
        image=rng.integers(0, 256, (count, *size, 3), np.uint8),
        parsing=rng.integers(0, 9, (count, *size), np.uint8),
        hidden=np.zeros((count, OCCLUDED_DUKE.coarse), bool),
        camid=np.arange(count) % OCCLUDED_DUKE.cameras,
        pid=np.arange(count) // 2,
        threshold=5.0,
    )
