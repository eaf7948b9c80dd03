"""The occlusion-aware ViT of Section 3.1.2, built from the layers of a Vision Transformer of timm.

The paper's symbols: x_cls, P_t, P_s class, part and patch tokens; P_E position, E_o occlusion pattern and
C_e camera embeddings; F = {f^g, f^0 ... f^K, f^p} the encoder's output; S stride, P patch size, N patches.

Unusual here:
- Patches may overlap: the pre-trained kernel keeps its size, only its stride changes (Eq. 4).
- Position embeddings are resized to the grid at hand, which need not be square.
- Camera -1 means unknown: it gets the mean embedding of the cameras that have training images.
- Registers of a pre-trained ViT (Darcet et al. 2024), which only the layers read, end the sequence: timm
  has them behind the class token, which is the same to attention.  They have no embeddings.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import normalise
from pipeline.core.params import BadInput
from pipeline.labels import occlusion
from pipeline.model.compute import set_attention

Image = Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]  # colours in [-1, 1], or bytes
Edit = Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B N D"]]  # of projected patches
CameraOn = Literal["all", "class"]  # tokens that get the camera's embedding

# ------------------------------------------------------------------ geometry


def grid(size: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    """Patches down and across an image of `size` (H, W), N in all; P `patch`, S `stride`; Eq. 4."""
    return (size[0] + stride - patch) // stride, (size[1] + stride - patch) // stride


def resize_positions(
    rows: Float[Tensor, "1 n D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 N D"]:
    """Patch rows of a position embedding P_E, bilinearly resized from one grid (down, across) to another."""
    if old == new:
        return rows
    plane = rows.reshape(1, *old, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, new, mode="bilinear", align_corners=False)
    return plane.flatten(2).transpose(1, 2)


def patch_labels(
    parsing: UInt8[Tensor, "B H W"], labels: int, patch: int, stride: int
) -> Float[Tensor, "B N labels"]:
    """Share of each label in each patch of the encoder's grid, in [0, 1]; a patch's shares sum to 1.

    Exactly the pixels of the parsing map M (Eq. 21) that a patch token sees, whatever the stride.
    """
    cells = parsing.unfold(1, patch, stride).unfold(2, patch, stride).flatten(1, 2).flatten(2).long()
    counts = torch.zeros(*cells.shape[:2], labels, device=cells.device)
    return counts.scatter_add_(2, cells, counts.new_ones(()).expand_as(cells)) / patch**2


def patch_share(mask: Bool[Tensor, "B H W"], patch: int, stride: int) -> Float[Tensor, "B N"]:
    """Share of each patch of the encoder's grid that a mask covers, in [0, 1]."""
    return F.avg_pool2d(mask.float()[:, None], patch, stride).flatten(1)


# ------------------------------------------------------------------ the occlusion-aware ViT


class Tokens(NamedTuple):
    """The encoder's output F: global, part (background first) and patch tokens."""

    cls: Float[Tensor, "B D"]  # f^g
    part: Float[Tensor, "B K1 D"]  # f^0 (background), f^1 ... f^K
    patch: Float[Tensor, "B N D"]  # f^p


class OcclusionAwareViT(nn.Module):
    """OA-ViT: a ViT with part tokens and embeddings of the occlusion pattern and the camera (Eq. 3-5).

    vit: the pre-trained ViT of timm, whose layers are taken over
    size: height, width of an image in pixels
    stride: S, pixels between patches
    parts: K + 1 part tokens; 0 for none
    coarse: C, parts of the occlusion type z
    cameras: how many, numbered from 0
    gamma_pattern, gamma_camera: gamma_1 and gamma_2, weights of the two embeddings; 0 leaves one out
    trained: the cameras that have training images; () means all
    camera_on: the tokens that get the camera's embedding

    Raises `BadInput` if an image is less than a patch.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        size: tuple[int, int],
        stride: int,
        parts: int,
        coarse: int,
        cameras: int,
        gamma_pattern: float = 3.0,
        gamma_camera: float = 3.0,
        trained: tuple[int, ...] = (),
        camera_on: CameraOn = "all",
    ):
        super().__init__()
        self.patch = vit.patch_embed.patch_size[0]
        self.size, self.stride, self.parts = size, stride, parts
        self.grid = grid(size, self.patch, stride)
        if min(self.grid) < 1:
            raise BadInput(
                f"params.yaml: train.size = {list(size)} is less than a patch of {self.patch}. Raise it."
            )
        self.gamma_pattern, self.gamma_camera, self.camera_on = gamma_pattern, gamma_camera, camera_on
        self.projection = vit.patch_embed.proj
        self.projection.stride = (stride, stride)
        self.norm_pre, self.blocks, self.norm = vit.norm_pre, vit.blocks, vit.norm
        self.cls, self.register = vit.cls_token, vit.reg_token
        width = vit.embed_dim
        self.part = nn.Parameter(_embedding(1, parts, width))  # P_t
        embedded = F.pad(vit.pos_embed, (0, 0, int(vit.no_embed_class), 0))  # 0 for an unplaced class token
        places = resize_positions(embedded[:, 1:], vit.patch_embed.grid_size, self.grid)
        self.position = nn.Parameter(  # P_E, N + K + 2 rows
            torch.cat([embedded[:, :1], _embedding(1, parts, width), places], 1).detach().clone()
        )
        self.pattern = nn.Parameter(_embedding(2**coarse, width))  # O_e
        self.camera = nn.Parameter(_embedding(cameras, width))
        self.trained = list(trained or range(cameras))
        set_attention(self, "math")

    @property
    def width(self) -> int:
        """D, channels of a token."""
        return self.cls.shape[-1]

    @property
    def registers(self) -> int:
        """How many register tokens end the sequence."""
        return 0 if self.register is None else self.register.shape[1]

    def forward(self, image: Image, hidden: Bool[Tensor, "B C"], camid: Int[Tensor, "B"]) -> Tokens:
        """F: tokens after the ViT's last norm.  `hidden` is z; camera -1 is unknown.

        Raises `ValueError` for an image of another size.
        """
        return self.split(self.norm(self.blocks(self.norm_pre(self.embed(image, hidden, camid)))))

    def split(self, tokens: Float[Tensor, "B L D"]) -> Tokens:
        """A sequence of tokens by their kinds, without the registers."""
        counts = [1, self.parts, self.grid[0] * self.grid[1], self.registers]
        cls, part, patch, _ = tokens.split(counts, 1)
        return Tokens(cls[:, 0], part, patch)

    def embed(
        self,
        image: Image,
        hidden: Bool[Tensor, "B C"],
        camid: Int[Tensor, "B"],
        edit: Edit | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The input sequence E = [x_cls; P_t; P_s] + P_E + gamma_1 E_o + gamma_2 C_e, Eq. 5, and registers.

        `edit` changes the patches P_s before anything is added to them.
        Bytes are normalised here, on the network's device: they are a quarter of the size of floats.
        """
        if tuple(image.shape[2:]) != self.size:
            raise ValueError(f"image of {tuple(image.shape[2:])}, the model takes {self.size}")
        image = normalise(image) if image.dtype == torch.uint8 else image
        patch = self.projection(image).flatten(2).transpose(1, 2)
        patch = patch if edit is None else edit(patch)
        learned = torch.cat([self.cls, self.part], 1).expand(image.shape[0], -1, -1)
        pattern = self.gamma_pattern * self.pattern[occlusion.pattern_index(hidden)][:, None]  # Eq. 3
        camera = self.gamma_camera * self.camera_embedding(camid)[:, None]
        if self.camera_on == "class":
            camera = F.pad(camera, (0, 0, 0, learned.shape[1] + patch.shape[1] - 1))
        tokens = torch.cat([learned.to(patch.dtype), patch], 1) + self.position + (pattern + camera)
        if self.register is None:
            return tokens
        return torch.cat([tokens, self.register.to(tokens.dtype).expand(len(tokens), -1, -1)], 1)

    def camera_embedding(self, camid: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """C_e of each image, Eq. 5.  Departs: the mean trained row where the camera is unknown (-1).

        Raises `ValueError` for a camera that the model does not know, unless it is being exported: a graph
        cannot.
        """
        if not torch.compiler.is_exporting() and len(camid) and int(camid.max()) >= len(self.camera):
            raise ValueError(
                f"camera {int(camid.max())}, but the model knows {len(self.camera)}; pass -1 if unknown"
            )
        table = torch.cat([self.camera[self.trained].mean(0, keepdim=True), self.camera])
        return table[camid.clamp(min=-1) + 1]


def _embedding(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(*shape), std=0.02)


def plain_vit(vit: VisionTransformer, size: tuple[int, int]) -> OcclusionAwareViT:
    """A pre-trained ViT for images of `size` (height, width), without part tokens and side embeddings."""
    return OcclusionAwareViT(
        vit, size, vit.patch_embed.patch_size[0], parts=0, coarse=1, cameras=1,
        gamma_pattern=0.0, gamma_camera=0.0,
    )  # fmt: skip


@torch.no_grad()
def class_tokens(encoder: OcclusionAwareViT, image: Image) -> Float[Tensor, "B D"]:
    """L2-normalised class tokens of a `plain_vit`: the embeddings before any training."""
    nothing = torch.zeros(len(image), 1, dtype=torch.bool, device=image.device)
    unknown = torch.full((len(image),), -1, device=image.device)
    return F.normalize(encoder(image, nothing, unknown).cls, dim=-1)
