"""A small Mask R-CNN of torchvision's own parts, for 256 x 128 crops: 2 million weights.

Unusual here, all for speed on a CPU:
- Plain residual blocks, as dense 3 x 3 convolutions use a CPU better than depthwise ones.
- Masks are pooled 28 x 28 from the finest level and not upsampled, which keeps thin arms and legs.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign

from pipeline.labels.segmentation import MASK_SIZE

WIDTHS = (48, 64, 128, 192)  # channels at strides 4, 8, 16, 32
BLOCKS = (1, 2, 2, 1)
CHANNELS = 64  # of every level of the pyramid
MASK_CHANNELS = 48
ANCHORS = ((24,), (48,), (96,), (144,), (192,))  # pixels, one size per level
RATIOS = (1.0, 2.0, 3.0)  # height / width: people stand


def build(**settings: object) -> MaskRCNN:
    """The network with random weights, for background and person; `settings` are arguments of `MaskRCNN`."""
    backbone = BackboneWithFPN(
        _backbone_body(), {f"stage{i}": str(i) for i in range(4)}, list(WIDTHS), CHANNELS
    )
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(ANCHORS, (RATIOS,) * len(ANCHORS)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(CHANNELS * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0"], MASK_SIZE, 1),
        mask_head=MaskRCNNHeads(CHANNELS, (MASK_CHANNELS,) * 3, 2),
        mask_predictor=nn.Conv2d(MASK_CHANNELS, 2, 1),
        **settings,
    )


def _backbone_body() -> nn.Sequential:
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=Conv2dNormActivation(3, 32, 3, 2))
    in_channels = 32
    for i, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
        stages[f"stage{i}"] = nn.Sequential(
            _downsampling_block(in_channels, width), *(BasicBlock(width, width) for _ in range(blocks - 1))
        )
        in_channels = width
    return nn.Sequential(stages)


def _downsampling_block(in_channels: int, out_channels: int) -> BasicBlock:
    shortcut = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, 2, bias=False), nn.BatchNorm2d(out_channels)
    )
    return BasicBlock(in_channels, out_channels, 2, shortcut)
