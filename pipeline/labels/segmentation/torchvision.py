"""Backend `torchvision`: our small Mask R-CNN, or one of torchvision's own.

Unusual here: the box head's classes are merged into person and anything else before non-maximum suppression.
So a crop full of bags and cars keeps its persons, and masks are computed for persons alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from pipeline.core import distributed, weights
from pipeline.core.params import BadInput
from pipeline.labels.segmentation import Backend, Detections, Segment, small

SMALL = "small"
PERSON = 1  # class number of a person in COCO and in the small network, where it is the only one


def load(params: Segment, path: str) -> Backend:
    """The network in eval mode with its weights.

    Raises `BadInput` if the network is unknown, or if the weights are missing or do not fit.
    """
    check_network(params.network)
    name = params.network.partition(":")[0]
    settings = {
        "box_score_thresh": params.score_floor,
        "box_detections_per_img": params.instances,
        "rpn_pre_nms_top_n_test": 2 * params.proposals,
        "rpn_post_nms_top_n_test": params.proposals,
    }
    network = _build(name, settings)
    file = weights_file(params, path)
    remedy = "Let segment.network and segment.weights in params.yaml name a network and its own weights."
    weights.load_strict(network, weights.read(file), file, remedy)
    network.roi_heads.box_predictor = _PersonPredictor(network.roi_heads.box_predictor)
    return _Detector(network.eval().to(distributed.local_device(params.device)))


def weights_file(params: Segment, path: str) -> Path:
    """The file of the network's weights: `path`, or the published file, downloaded on first use."""
    name, _, published = params.network.partition(":")
    return weights.download(_weights_url(name, published)) if published else Path(path)


def check_network(network: str) -> None:
    """Raise `BadInput` for an unknown network, or published weights that it does not have."""
    name, _, published = network.partition(":")
    known = [SMALL, *(n for n in models.list_models(models.detection) if n.startswith("maskrcnn"))]
    if name not in known:
        raise BadInput(
            f"params.yaml: segment.network = {name!r} is no Mask R-CNN of torchvision. "
            f"Name one of {', '.join(known)}."
        )
    if published:
        _weights_url(name, published)


def _build(name: str, settings: dict[str, Any]) -> MaskRCNN:
    if name == SMALL:
        return small.build(**settings)
    return models.get_model(name, weights=None, weights_backbone=None, **settings)


def _weights_url(name: str, published: str) -> str:
    known = {} if name == SMALL else models.get_model_weights(name).__members__
    if published not in known:
        raise BadInput(
            f"params.yaml: segment.network = '{name}:{published}': torchvision publishes no such weights. "
            f"Name {' or '.join(f'{name}:{n}' for n in known) or 'a file in segment.weights'}."
        )
    return known[published].url


class _PersonPredictor(nn.Module):
    """A box predictor of two classes, anything else and person, made of one of more classes.

    Its softmax gives the probability of a person that the original predictor gives.
    """

    def __init__(self, predictor: nn.Module):
        super().__init__()
        self.predictor = predictor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = self.predictor(x)
        others = torch.cat([logits[:, :PERSON], logits[:, PERSON + 1 :]], 1).logsumexp(1)
        return torch.stack([others, logits[:, PERSON]], 1), boxes[:, : 4 * (PERSON + 1)]


class _Detector:
    """Crops of one size -> the persons in each."""

    def __init__(self, network: MaskRCNN):
        self.network = network

    @torch.inference_mode()
    def __call__(self, crops: UInt8[np.ndarray, "B h w 3"]) -> list[Detections]:
        network = self.network
        images = self._normalise(crops)
        features = network.backbone(images.tensors)
        proposals, _ = network.rpn(images, features)
        outputs, _ = network.roi_heads(features, proposals, images.image_sizes)
        tensors = [(output["scores"], output["boxes"], output["masks"][:, 0]) for output in outputs]
        return [Detections(*(tensor.cpu().numpy() for tensor in image)) for image in tensors]

    def _normalise(self, crops: UInt8[np.ndarray, "B h w 3"]) -> ImageList:
        transform, device = self.network.transform, next(self.network.parameters()).device
        source = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)
        pixels = torch.empty(source.shape, device=device).copy_(source).div_(255)  # from here in place
        statistics = (transform.image_mean, transform.image_std)
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in statistics)
        batch = transform.batch_images(list(pixels.sub_(mean).div_(std)))
        return ImageList(batch, [tuple(pixels.shape[2:])] * len(pixels))
