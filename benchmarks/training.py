"""What a step of training and an embedding cost beside TransReID: one JSON object.

`python -m benchmarks.training --transreid FOLDER`, a checkout of damo-cv/TransReID.  Its model, losses,
optimiser, transforms and the lines of its loop are its own, at its Occluded-Duke settings: ViT-B, 256 x 128,
JPM.  Ours is `ogfr` with the recommended preset around timm's ViT-B.  Both have random weights and 702
identities, and take turns.  Replaced in TransReID's: what torch no longer has, its configuration's reader
(yacs), and a loss that it builds on a GPU and never uses.

Times are CPU time with one thread, the least of all rounds; on a GPU wall time.  Both sides keep
their memory as our training does, which spares TransReID's step a little too.  An image of ours in training
is a pair: the image and its occluded view.  `products_alone` is what the ratio to TransReID as it is would be
if both took no more time than their multiply-adds do at the speed of a large product, which is measured too.
"""

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.complexity import OCCLUDED_DUKE, VIT
from benchmarks.pictures import held_out
from benchmarks.worlds import ROOT
from pipeline.batches.augment import random_flip_crop, sample_augmentations, training_batch
from pipeline.batches.views import Batch, ImageSet, resize_images
from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.data.index import decode_fast
from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import HOLISTIC, PRESETS, Params
from pipeline.methods.presets import resolve
from pipeline.model import compute
from pipeline.model.backbones import untrained_vit
from pipeline.training import loop, schedule

SETTINGS = "configs/OCC_Duke/vit_transreid_stride.yml"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODES = {  # name: library of products, precision; the first is TransReID's own
    "cpu": {
        "float32": ("stock", torch.float32),
        "onednn": ("onednn", torch.float32),
        "bfloat16": ("stock", torch.bfloat16),
    },
    "cuda": {"float16": ("stock", torch.float16), "bfloat16": ("stock", torch.bfloat16)},
}[DEVICE.type]
SHARED = {name: mode for name, mode in MODES.items() if mode[1] != torch.float16}  # what both compute in
EPISODES = 4
MB, CROPS = 1e6, 64


def main() -> None:
    """Measure and print."""
    words = argparse.ArgumentParser(prog="python -m benchmarks.training")
    words.add_argument("--transreid", type=Path, required=True)
    words.add_argument("--strides", type=int, nargs="+", default=[11, 16])
    usual = 4 if DEVICE.type == "cpu" else 64
    words.add_argument("--images", type=int, default=usual, help="in a batch, two of each person")
    words.add_argument("--rounds", type=int, default=3)
    given = words.parse_args()
    if not (given.transreid / SETTINGS).is_file():
        raise BadInput(
            f"{given.transreid}: no {SETTINGS}. Give the folder of a checkout of damo-cv/TransReID."
        )
    if given.images < 4:
        raise BadInput(f"--images {given.images}: TransReID's triplets need two people. Give 4 or more.")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):  # where TransReID's prints go
        found = {
            "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else _processor(),
            "images": given.images,
            "rounds": given.rounds,
            "input": inputs(given.transreid, given.rounds),
        }
        for stride in given.strides:
            found[f"stride_{stride}"] = networks(given.transreid, stride, given.images, given.rounds)
    print(json.dumps(found, indent=1))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return " ".join(sorted({line for line in lines if line.startswith(("model name", "cpu family"))}))


# ------------------------------------------------------------------ the two sides


class Theirs:
    """TransReID's model and the steps of its loop."""

    def __init__(self, checkout: Path, stride: int, images: int):
        config = settings(checkout, stride)
        modules = theirs(checkout)
        world = OCCLUDED_DUKE
        self.model = modules["model"].make_model(config, world.identities, world.cameras, 1).to(DEVICE)
        unused = nn.Linear(1, 1)
        self.optimiser, _ = modules["solver"].make_optimizer(config, self.model, unused)
        self.loss, _ = modules["loss"].make_loss(config, world.identities)
        self.image = torch.randn(images, 3, *world.size, device=DEVICE)
        self.pid = torch.arange(images, device=DEVICE) // 2
        self.camera = torch.arange(images, device=DEVICE) % world.cameras
        self.view = torch.zeros_like(self.camera)

    def step(self, precision: torch.dtype) -> None:
        """As `do_train` does it."""
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == torch.float16)
        self.model.train()
        self.optimiser.zero_grad()
        with _computing(precision):
            score, feature = self.model(self.image, self.pid, cam_label=self.camera, view_label=self.view)
            loss = self.loss(score, feature, self.pid, self.camera)
        scaler.scale(loss).backward()
        scaler.step(self.optimiser)
        scaler.update()
        (score[0].max(1)[1] == self.pid).float().mean()
        loss.item()

    def embed(self, precision: torch.dtype) -> None:
        """As `do_inference` does it."""
        self.model.eval()
        with torch.no_grad(), _computing(precision):
            self.model(self.image, cam_label=self.camera, view_label=self.view)


class Ours:
    """OGFR and the loop's steps."""

    def __init__(self, checkout: Path, stride: int, images: int):
        chosen = replace(_read("ogfr", Params), preset="recommended", stride=stride)
        chosen = resolve(chosen, PRESETS, "recommended", "ogfr")
        self.plan = resolve(_read("train", schedule.Schedule), PRESETS, "paper", "train")
        self.model = build(chosen, OCCLUDED_DUKE, untrained_vit({"name": VIT})).to(DEVICE)
        made, rows = pictures(images), np.arange(images)
        chances = sample_augmentations(made, rows, 0.5, 10, self.plan.obstacles, [], np.random.default_rng(0))
        self.batch = training_batch(made, rows, chances).to(DEVICE)
        self.loops: dict[torch.dtype, loop.Loop] = {}

    def step(self, precision: torch.dtype) -> None:
        """A step of training."""
        if precision not in self.loops:
            plan = replace(self.plan, precision=str(precision).removeprefix("torch."))
            self.loops[precision] = loop.Loop(self.model, plan, DEVICE)
        self._attend(precision)
        self.model.train()
        self.loops[precision].step(self.batch, 0.5)

    def embed(self, precision: torch.dtype) -> None:
        """Features and visibility."""
        self._attend(precision)
        self.model.eval()
        with torch.inference_mode(), _computing(precision):
            self.model.embed(self.batch)

    def _attend(self, precision: torch.dtype) -> None:
        compute.set_attention(self.model, compute.attention_kernel("auto", DEVICE))

    def explore(self, precision: torch.dtype) -> Callable[[], None]:
        """The agent's part of a step: baseline and three more episodes."""
        model, batch = self.model.train(), self.batch
        with torch.no_grad(), _computing(precision):
            h, _ = model.encode_views(batch)
            b = model.branch(HOLISTIC, h, batch.holistic)

        def run() -> None:
            with torch.no_grad(), _computing(precision):
                model.explore([b], batch.pid)

        return run


def _computing(precision: torch.dtype) -> torch.autocast:
    return torch.autocast(DEVICE.type, precision, precision != torch.float32)


def _read(section: str, schema: type) -> Any:
    return params.read(ROOT / "params.yaml", section, schema)


def pictures(count: int) -> ImageSet:
    """Noise of the world's size, two images an identity."""
    rng, size = np.random.default_rng(0), OCCLUDED_DUKE.size
    return ImageSet(
        image=rng.integers(0, 256, (count, *size, 3), np.uint8),
        parsing=rng.integers(0, 9, (count, *size), np.uint8),
        hidden=np.zeros((count, OCCLUDED_DUKE.coarse), bool),
        camid=np.arange(count) % OCCLUDED_DUKE.cameras,
        pid=np.arange(count) // 2,
        threshold=5.0,
    )


# ------------------------------------------------------------------ TransReID as it is


def theirs(checkout: Path) -> dict[str, ModuleType]:
    """Its modules; nothing of them is changed but a loss that is built and not used."""
    sys.modules["torch._six"] = ModuleType("torch._six")
    sys.modules["torch._six"].container_abcs = importlib.import_module("collections.abc")
    sys.modules["yacs"], sys.modules["yacs.config"] = ModuleType("yacs"), ModuleType("yacs.config")
    sys.modules["yacs.config"].CfgNode = SimpleNamespace
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    names = {"config": "config.defaults", "model": "model.make_model", "loss": "loss.make_loss"}
    names |= {"solver": "solver.make_optimizer", "data": "datasets.make_dataloader"}
    found = {name: importlib.import_module(module) for name, module in names.items()}
    found["loss"].CenterLoss = lambda **_: nn.Linear(1, 1)
    return found


def settings(checkout: Path, stride: int) -> SimpleNamespace:
    """Its configuration for Occluded-Duke at a stride, without pre-trained weights."""
    config = theirs(checkout)["config"]._C
    for section, values in YAML(typ="safe").load(checkout / SETTINGS).items():
        if isinstance(values, dict):
            vars(getattr(config, section)).update(values)
    config.MODEL.PRETRAIN_CHOICE, config.MODEL.STRIDE_SIZE = "none", [stride, stride]
    return config


# ------------------------------------------------------------------ the networks


def networks(checkout: Path, stride: int, images: int, rounds: int) -> dict[str, Any]:
    """Milliseconds an image of both sides in every mode, their ratios, and the memory of a step."""
    sides = {"theirs": Theirs(checkout, stride, images), "ours": Ours(checkout, stride, images)}
    runs = {
        (side, kind, mode): (getattr(sides[side], kind), *MODES[mode])
        for mode in MODES
        for side in (sides if mode in SHARED else ["theirs"])
        for kind in ("step", "embed")
    }
    taken: dict[tuple[str, str, str], list[float]] = {key: [] for key in runs}
    speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
    with compute.keep_freed_memory():
        for _ in range(rounds):
            for mode, (library, precision) in MODES.items():
                speeds[mode].append(_speed(library, precision))
            for key, (run, library, precision) in runs.items():
                with compute.float32_matmul(library):
                    taken[key].append(_seconds(lambda run=run, p=precision: run(p)) / images * 1e3)
            print(f"stride {stride}: {taken}", flush=True)
    least = {key: min(values) for key, values in taken.items()}
    fastest = {mode: max(values) for mode, values in speeds.items()}
    return {
        "product_gflop_per_s": {mode: round(speed) for mode, speed in fastest.items()},
        **{kind: _table(least, kind, _work(sides, kind), fastest) for kind in ("step", "embed")},
        "agent_share_of_step": _agent(sides["ours"], least, images, rounds),
        "step_peak_mb": {side: _peak(side, checkout, stride, images) for side in sides},
    }


def _speed(library: str, precision: torch.dtype) -> float:
    """GFLOP/s of a product of a ViT-B's size, the best of some."""
    left, right = (torch.randn(shape, device=DEVICE, dtype=precision) for shape in ((1024, 768), (768, 3072)))
    with compute.float32_matmul(library):
        seconds = min(_seconds(lambda: left @ right) for _ in range(9))
    return 2 * left.numel() * right.shape[1] / seconds / 1e9


def _work(sides: dict[str, Theirs | Ours], kind: str) -> float:
    """Our multiply-adds as a multiple of theirs."""
    done = {}
    for side, one in sides.items():
        with FlopCounterMode(display=False) as counter:
            getattr(one, kind)(MODES[next(iter(SHARED))][1])
        done[side] = counter.get_total_flops()
    return done["ours"] / done["theirs"]


def _table(
    least: dict[tuple[str, str, str], float], kind: str, work: float, speeds: dict[str, float]
) -> dict[str, Any]:
    first = next(iter(MODES))
    own = least["theirs", kind, first]
    return {
        "multiply_adds_of_theirs": round(work, 3),
        "products_alone": {m: round(work * speeds[first] / speeds[m], 3) for m in SHARED},
        "ms_per_image": {f"{s} {m}": round(v, 1) for (s, k, m), v in least.items() if k == kind},
        "ours_of_theirs_alike": {
            m: round(least["ours", kind, m] / least["theirs", kind, m], 3) for m in SHARED
        },
        "ours_of_theirs_as_it_is": {m: round(least["ours", kind, m] / own, 3) for m in SHARED},
    }


def _agent(
    ours: Ours, least: dict[tuple[str, str, str], float], images: int, rounds: int
) -> dict[str, float]:
    """Baseline and three more episodes, beside a step that has the baseline alone."""
    shares = {}
    for mode, (library, precision) in SHARED.items():
        with compute.float32_matmul(library):
            run = ours.explore(precision)
            spent = min(_seconds(run) for _ in range(rounds)) / images * 1e3
        shares[mode] = round(spent / least["ours", "step", mode], 4)
    return shares


def _seconds(run: Callable[[], None]) -> float:
    if DEVICE.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(side: str, checkout: Path, stride: int, images: int) -> float:
    """What two steps add to a process of its own, model and optimiser included, in MB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as process:
        return round(process.apply(_step_alone, (side, checkout, stride, images)) / MB, 1)


def _step_alone(side: str, checkout: Path, stride: int, images: int) -> float:
    torch.set_num_threads(1)
    kind = {"theirs": Theirs, "ours": Ours}[side]
    with contextlib.redirect_stdout(sys.stderr):
        before = _memory("VmRSS")
        one = kind(checkout, stride, images)
        with compute.keep_freed_memory():
            for _ in range(2):  # momentum is there from the second on
                one.step(MODES[next(iter(SHARED))][1])
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _memory("VmHWM") - before


def _memory(line: str) -> int:
    """Bytes in use (VmRSS), or the most there were (VmHWM)."""
    status = dict(entry.split(":") for entry in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) * 1024


# ------------------------------------------------------------------ the inputs


def inputs(checkout: Path, rounds: int) -> dict[str, Any]:
    """Images a second of one core: TransReID's transforms, and ours with and without the cache.

    Crops of Market-1501's size, enlarged to 256 x 128.  A pair of ours is two views with their parsing maps.
    """
    made = [_crop(jpeg) for _, jpeg, _ in held_out(CROPS)]
    with tempfile.TemporaryDirectory() as folder:
        for number, jpeg in enumerate(made):
            (Path(folder) / f"{number}.jpg").write_bytes(jpeg)
        dataset = transformed(checkout, [(f"{folder}/{n}.jpg", n, 0, 0) for n in range(CROPS)])
        plan = resolve(_read("train", schedule.Schedule), PRESETS, "recommended", "train")
        cached, every, rng = pictures(CROPS), np.arange(CROPS), np.random.default_rng(0)

        def views(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # and their parsing maps
            return random_flip_crop(images, cached.parsing, every, plan.flip, plan.pad, rng)

        def decoded() -> np.ndarray:
            resized = np.empty_like(cached.image)
            resize_images([decode_fast(jpeg) for jpeg in made], resized)
            return resized

        def pairs() -> Batch:
            chances = sample_augmentations(cached, every, plan.flip, plan.pad, plan.obstacles, [], rng)
            return training_batch(cached, every, chances)

        runs: dict[str, Callable[[], Any]] = {
            "theirs": lambda: torch.stack([dataset[n][0] for n in range(CROPS)]),
            "ours_cached_view": lambda: views(cached.image),
            "ours_decoded_view": lambda: views(decoded()),
            "ours_cached_pair": pairs,
        }
        taken = {name: [] for name in runs}
        for _ in range(3 * rounds):
            for name, run in runs.items():
                start = time.process_time()
                run()
                taken[name].append((time.process_time() - start) / CROPS)
    least = {name: min(values) for name, values in taken.items()}
    return {
        "images_per_s": {name: round(1 / spent) for name, spent in least.items()},
        "ours_to_theirs": {n: round(least["theirs"] / s, 2) for n, s in least.items() if n != "theirs"},
    }


def _crop(jpeg: bytes) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg)) as picture:
        picture.resize((64, 128), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def transformed(checkout: Path, rows: list[tuple[str, int, int, int]]) -> Any:
    """TransReID's training set of these files: `dataset[i]` decodes and transforms one."""
    data, config = theirs(checkout)["data"], settings(checkout, 16)
    listed = SimpleNamespace(
        train=rows, query=rows[:1], gallery=rows[:1],
        num_train_pids=len(rows), num_train_cams=1, num_train_vids=1,
    )  # fmt: skip
    vars(data)["__factory"]["ours"] = lambda root: listed
    config.DATASETS.NAMES, config.DATASETS.ROOT_DIR = "ours", ""
    return data.make_dataloader(config)[0].dataset


if __name__ == "__main__":
    main()
