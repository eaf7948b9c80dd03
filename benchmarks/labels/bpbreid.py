"""All work around the networks, beside the label script that BPBReID publishes.

Its file `torchreid/scripts/get_labels.py` runs unchanged, at batch size 1 (at others it mixes images up).
Only its two networks are replaced: they return the instances and fields that our stages recorded, in the
formats of detectron2 and openpifpaf.  Our stages run with the recorded outputs of their networks.
"""

import contextlib
import importlib.util
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.labels.sandbox import LABEL_STAGES, Sandbox, suppress_output
from benchmarks.samples import Sample, evenly_spaced, market_path, pack_samples, unpack_samples
from pipeline.core.label_file import LabelFile
from pipeline.data.index import read_index
from pipeline.labels import parsing

SCRIPT = "torchreid/scripts/get_labels.py"
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"  # the script's default
SIDES = {
    "theirs": "list and decode loose image files, resize and normalise for both networks (Mask R-CNN's short "
    "side to 800, as its configuration has it), choose the person, multiply its mask into 36 confidences, "
    "write two .npy files per image",
    "theirs_at_our_size": "the same, its configuration's 800 set to the short side of our segment.size",
    "ours_to_the_same_point": "segment and pose around their networks, and of parse: read both files, paste "
    "the masks, group the confidences, choose the person, multiply its mask into the parts' confidences; "
    "checksums, compression and fsync of all files included; images come packed from stage index",
    "ours_in_full": "the same, and the map of K + 1 labels on parse.grid, and label: y(c) and l_c",
}

SHORT = 16  # images of the short run


class RecordedNetwork(nn.Module):
    """Replaces a network: each call returns the next recorded output."""

    def __init__(self, outputs: list[Any]):
        super().__init__()
        self.outputs, self.next = outputs, 0

    def forward(self, batch: Any) -> Any:
        """The output of the next image."""
        self.next += 1
        return self.outputs[self.next - 1]


# ------------------------------------------------------------------ the published script


def load_script(checkout: Path, extra: list[str]) -> ModuleType:
    """The published script as a module; `extra` are folders with detectron2 and its requirements."""
    sys.path.extend(extra)
    spec = importlib.util.spec_from_file_location("bpbreid_get_labels", checkout / SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


class BPBReIDScript:
    """The script's two passes over a folder of images."""

    def __init__(self, script: ModuleType, folder: Path, sandbox: Sandbox):
        self.script, self.folder = script, folder
        self.short_side = min(sandbox.values["segment"]["size"])
        self.files = [str(folder / name) for name in _loose_paths(sandbox)]
        self.instances, self.fields = recorded_outputs(sandbox)

    def run(self, published_size: bool = True) -> float:
        """CPU seconds of both passes, without building the networks.

        Without `published_size`, Mask R-CNN's short side is ours instead of the 800 of its configuration.
        """
        config = self.script.build_config_maskrcnn(CONFIG)
        if not published_size:
            config.INPUT.MIN_SIZE_TEST = self.short_side
        shutil.rmtree(self.folder / "masks", ignore_errors=True)
        with suppress_output(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pose, mask = self._build(config)
            start = time.process_time()
            paths = self.script.get_image_paths(str(self.folder))
            assert sorted(paths) == sorted(self.files), "the script sees other images"
            for step in (pose, mask):
                step(imagery=self.files, dataset_dir=str(self.folder), is_overwrite=False)
            return time.process_time() - start

    def _build(self, config: Any) -> tuple[Any, Any]:
        import openpifpaf

        network = RecordedNetwork(self.fields)
        network.head_metas = openpifpaf.plugins.coco.CocoKp().head_metas
        for number, meta in enumerate(network.head_metas):
            meta.head_index, meta.base_stride = number, 16
        factory = openpifpaf.network.Factory
        with mock.patch.object(factory, "factory", lambda self, **_: (network, 0)):
            pose = self.script.BatchPifPaf(batch_size=1, workers=0)
        factory.checkpoint = None
        with (
            mock.patch.object(self.script, "build_model", lambda _: RecordedNetwork(self.instances)),
            mock.patch.object(self.script, "DetectionCheckpointer"),
        ):
            return pose, self.script.BatchMask(config, batch_size=1, workers=0)

    def output(self, row: int) -> np.ndarray:
        """The confidences that the script wrote for an image."""
        name = os.path.relpath(self.files[row], self.folder)
        return np.load(self.folder / "masks" / "pifpaf_maskrcnn_filtering" / f"{name}.npy")


def recorded_outputs(sandbox: Sandbox) -> tuple[list, list]:
    """Our instances and fields as detectron2 and openpifpaf return them, one image per call."""
    from detectron2.structures import Boxes, Instances

    index = read_index(sandbox.path("index.parquet"))
    stored = LabelFile(sandbox.path("instances.h5"), "instances")
    confidence = LabelFile(sandbox.path("fields.h5"), "fields")["confidence"]
    instances, fields = [], []
    for i, (height, width) in enumerate(index[["height", "width"]].to_numpy().tolist()):
        size, count = (height, width), int(stored["found"][i])
        box, mask = stored["box"][i][:count], stored["mask"][i][:count]
        masks = [parsing.paste_mask(m, b, size, size) > 0.5 for m, b in zip(mask, box, strict=True)]
        image = Instances(size)
        image.pred_boxes = Boxes(torch.from_numpy(box))
        image.scores = torch.from_numpy(stored["score"][i][:count])
        image.pred_classes = torch.zeros(count, dtype=torch.int64)
        image.pred_masks = torch.from_numpy(np.stack(masks))
        instances.append([{"instances": image}])
        fields.append(_heads(torch.from_numpy(confidence[i]).float() / 255))
    return instances, fields


def _heads(confidence: torch.Tensor) -> list[torch.Tensor]:
    heads = []
    for part, components in ((confidence[:17], 5), (confidence[17:], 8)):
        head = torch.zeros(1, len(part), components, *part.shape[1:])
        head[0, :, 1] = part
        heads.append(head)
    return heads


def _loose_paths(sandbox: Sandbox) -> list[str]:
    return [market_path(key) for key in read_index(sandbox.path("index.parquet"))["key"]]


# ------------------------------------------------------------------ side by side


class SideBySide:
    """Both sides on the same images, with the same instances and fields."""

    def __init__(self, script: ModuleType, folder: Path, samples: list[Sample]):
        self.count, self.sandbox = len(samples), Sandbox(folder / "ours")
        pack_samples(self.sandbox.path("raw.zip"), samples)
        self.sandbox.run("index")
        self.outputs = {stage: self.sandbox.run(stage, keep=True)[1] for stage in LABEL_STAGES}
        unpack_samples(folder / "theirs", samples)
        self.theirs = BPBReIDScript(script, folder / "theirs", self.sandbox)

    def measure(self) -> np.ndarray:
        """CPU seconds of each of `SIDES`, one after the other."""
        return np.array([self.theirs.run(), self.theirs.run(published_size=False), *self._ours()])

    def _ours(self) -> tuple[float, float]:
        """The four stages without their networks: to the script's point, and in full."""
        with _time_fuse() as seconds:
            costs = {stage: self.sandbox.run(stage, self.outputs[stage])[0].work for stage in LABEL_STAGES}
        full = sum(costs.values()) - seconds.product
        return full - costs["label"] - seconds.fuse + seconds.product, full

    def bytes_per_image(self) -> dict[str, float]:
        """Bytes that each side wrote."""
        names = ("instances", "fields", "parsing", "occlusion")
        files = {
            "theirs": self.theirs.folder.rglob("*.npy"),
            "ours": (self.sandbox.path(f"{name}.h5") for name in names),
        }
        return {s: round(sum(p.stat().st_size for p in paths) / self.count, 1) for s, paths in files.items()}

    def agreement(self) -> float:
        """Share of the images in which both selected the same person's confidences."""
        targets, same = LabelFile(self.sandbox.path("parsing.h5"), "parsing")["instance"][:], []
        for i, (heads, output) in enumerate(zip(self.theirs.fields, self.theirs.instances, strict=True)):
            theirs, masks = self.theirs.output(i), output[0]["instances"].pred_masks.numpy().astype(np.uint8)
            mask = cv2.resize(masks[targets[i]], theirs.shape[:0:-1])
            confidence = torch.cat([head[0, :, 1] for head in heads]).numpy()
            same.append(targets[i] >= 0 and np.array_equal(mask * confidence, theirs))
        return round(float(np.mean(same)), 4)


def compare(
    checkout: Path, extra: list[str], folder: Path, samples: list[Sample], rounds: int
) -> dict[str, Any]:
    """CPU ms per image of both sides, in turn, in one process with one thread.

    Only images with a detected person are used, as the script cannot handle others.  The time of a short run
    is subtracted, so that start and end, which do not grow with the images, count for neither side.
    """
    script = load_script(checkout, extra)
    samples = _with_person(folder / "all", samples)
    short = SideBySide(script, folder / "short", evenly_spaced(samples, SHORT))
    long = SideBySide(script, folder / "long", samples)
    short.measure()  # what the first use sets up is not measured
    seconds = np.array([(short.measure(), long.measure()) for _ in range(rounds)])  # round, run, side
    statistics = {}
    for name, statistic in (("minimum", np.min), ("median", np.median)):
        of_short, of_long = statistic(1e3 * seconds, 0)
        per_image = (of_long - of_short) / (long.count - short.count)
        statistics[name] = dict(zip(SIDES, per_image, strict=True))
    return {
        "images": long.count,
        "rounds": rounds,
        "what": SIDES,
        "cpu_ms_per_image": {
            name: {side: round(float(v), 3) for side, v in values.items()}
            for name, values in statistics.items()
        },
        "theirs_to_ours": {name: _ratios(values) for name, values in statistics.items()},
        "same_person_chosen": long.agreement(),
        "bytes_per_image": long.bytes_per_image(),
    }


def _ratios(values: dict[str, float]) -> dict[str, float]:
    theirs, ours = list(SIDES)[:2], list(SIDES)[2:]
    return {f"{a} / {b}": round(float(values[a] / values[b]), 2) for a in theirs for b in ours}


def _with_person(folder: Path, samples: list[Sample]) -> list[Sample]:
    sandbox = Sandbox(folder)
    pack_samples(sandbox.path("raw.zip"), samples)
    for stage in ("index", "segment"):
        sandbox.run(stage)
    index, instances = read_index(sandbox.path("index.parquet")), LabelFile(sandbox.path("instances.h5"))
    keys = {key for key, count in zip(index["key"], instances["found"][:], strict=True) if count}
    return [sample for sample in samples if sample[0] in keys]


@contextlib.contextmanager
def _time_fuse() -> Iterator[SimpleNamespace]:
    """Times `parsing.fuse`, and beside it the bare product of mask and confidences, cell by cell."""
    original, seconds = parsing.fuse, SimpleNamespace(fuse=0.0, product=0.0)

    def fuse(confidence: np.ndarray, mask: np.ndarray, *rest: Any) -> np.ndarray:
        begin = time.process_time()
        np.multiply(confidence, cv2.resize(mask, confidence.shape[:0:-1], interpolation=cv2.INTER_AREA))
        middle = time.process_time()
        labels = original(confidence, mask, *rest)
        seconds.product += middle - begin
        seconds.fuse += time.process_time() - middle
        return labels

    with mock.patch.object(parsing, "fuse", fuse):
        yield seconds
