"""Vision Transformers of timm, and the occlusion-aware one built from their parts (section 3.1.2).

The paper's symbols: x_cls, P_t, P_s class, part and patch tokens; P_E position, E_o occlusion pattern and
C_e camera embeddings; F = {f^g, f^0 ... f^K, f^p} the encoder's output; S stride, P patch size, N patches.

Unusual here:
- Patches may overlap: the pre-trained kernel keeps its size, only its stride changes (Eq. 4).
- Position embeddings are resized to the grid at hand, which need not be square.
- Camera -1 means unknown: the mean embedding of the cameras that were trained stands in.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from pipeline import occlusion, weights
from pipeline.arithmetic import attend, attend_by
from pipeline.batches import colours
from pipeline.params import BadInput

OWN = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")  # what describes a small ViT of ours


# ------------------------------------------------------------------ where encoders come from


def small(**architecture: Any) -> VisionTransformer:
    """A ViT of our own, named by `OWN`; its weights are random."""
    kind = {**architecture, "img_size": tuple(architecture["img_size"])}
    model = VisionTransformer(num_classes=0, **kind)
    model.architecture = {"name": "embedded", **architecture}
    return model


def save(path: str | Path, model: VisionTransformer, record: dict[str, Any]) -> None:
    """Write a `small` ViT in half precision, with its architecture; `record` goes beside it."""
    size = [n for key in OWN for n in np.atleast_1d(model.architecture[key]).tolist()]
    weights.write(path, {**model.state_dict(), "architecture": torch.tensor(size)}, record)


def read(path: str | Path) -> VisionTransformer:
    """The small ViT of a file that `save` wrote.  Raises `BadInput` if it is missing or something else."""
    tensors = weights.read(path)
    if "architecture" not in tensors:
        raise BadInput(
            f"{path}: not a ViT of ours. For weights of timm, let the method's vit be their name "
            "and its weights this file."
        )
    height, width, *rest = tensors.pop("architecture").tolist()
    model = small(**dict(zip(OWN, [(height, width), *rest], strict=True)))
    weights.fill(model, tensors, path, f"Restore it: `git checkout {path}`.")
    return model


def named(name: str, file: str = "") -> VisionTransformer:
    """A ViT of timm with its pre-trained weights: from `file`, or downloaded under its tag.

    Its tag says which colours it was trained with; its first layer is told to take ours (`batches.colours`).
    Raises `BadInput` if timm knows no such ViT, or the weights are out of reach or of another shape.
    """
    model = empty({"name": name})  # before any download: is it one that we can use?
    try:
        overlay = {"file": file} if file else None
        model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        place = file or f"models/pretrained/{name}.safetensors"
        raise BadInput(
            f"{place}: no weights of {name} there, or none that fit ({reason}). Put the model.safetensors of "
            f"https://huggingface.co/timm/{name} at {place} and set the method's weights to it."
        ) from None
    model.architecture = {"name": name, "weights": _digest(model)}
    _take_our_colours(model)
    return model


@torch.no_grad()
def _take_our_colours(model: VisionTransformer) -> None:
    # (colour - mean) / deviation = (ours / 2 + 1 / 2 - mean) / deviation, in the layer that comes first
    mean, deviation = (torch.tensor(model.pretrained_cfg[n])[:, None, None] for n in ("mean", "std"))
    first = _with_bias(model.patch_embed.proj)
    first.bias += (first.weight * ((0.5 - mean) / deviation)).sum((1, 2, 3))
    first.weight *= 0.5 / deviation


def _with_bias(layer: nn.Conv2d) -> nn.Conv2d:
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return layer


def _digest(model: VisionTransformer) -> str:
    # of all weights, so that a record tells one published file from another
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def start(name: str, file: str, embedded: str) -> VisionTransformer:
    """The encoder to start from: `embedded` names our own file, anything else a ViT of timm."""
    return read(embedded) if name == "embedded" else named(name, file)


def empty(architecture: dict[str, Any]) -> VisionTransformer:
    """A ViT of the given architecture, with random weights."""
    name = architecture["name"]
    if name == "embedded":
        return small(**{key: architecture[key] for key in OWN})
    if not timm.is_model(name.split(".")[0]):
        raise BadInput(f"params.yaml: vit = {name}: timm has no such model. Try vit_small_patch16_224.")
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise BadInput(f"params.yaml: vit = {name}: {error} Leave the tag out, or correct it.") from None
    if not isinstance(model, VisionTransformer) or not _is_plain(model):
        raise BadInput(
            f"params.yaml: vit = {name}: not a plain ViT with one class token. Choose another one."
        )
    _with_bias(model.patch_embed.proj)
    model.architecture = dict(architecture)
    return model


def _is_plain(model: VisionTransformer) -> bool:
    # patches straight from the image, a class token with a place, layers one after the other
    placed = model.pos_embed is not None and not model.no_embed_class
    token = model.cls_token is not None and model.num_prefix_tokens == 1
    patches = type(model.patch_embed) is PatchEmbed and model.patch_embed.proj.in_channels == 3
    layers = all(type(layer) is Block and isinstance(layer.attn, Attention) for layer in model.blocks)
    return placed and token and patches and layers


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


# ------------------------------------------------------------------ transformer layers


class Layer(Block):
    """A transformer layer of timm that can be asked for its first tokens alone."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, qkv_bias=True)
        self.attn.fused_attn = False  # until `arithmetic.attend_by` says else

    def forward(self, tokens: Float[Tensor, "B L D"], asked: int | None = None) -> Float[Tensor, "B Q D"]:
        """The first `asked` tokens, which attend to all; the rest is not computed.  None: all tokens."""
        if asked is None:
            return super().forward(tokens)
        kept = tokens[:, :asked] + _attended(self.attn, self.norm1(tokens), asked)
        return kept + self.mlp(self.norm2(kept))


def _attended(attention: Attention, tokens: Float[Tensor, "B L D"], asked: int) -> Float[Tensor, "B asked D"]:
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    rows = (tokens[:, :asked], tokens, tokens)
    query, key, value = (
        F.linear(x, w, b).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for x, w, b in zip(rows, weights, biases, strict=True)
    )
    return attention.proj(attend(query, key, value, attention.fused_attn).transpose(1, 2).flatten(2))


class Layers(nn.Sequential):
    """Layers of which the last one is asked for no more tokens than are wanted."""

    def forward(self, tokens: Float[Tensor, "B L D"], asked: int | None = None) -> Float[Tensor, "B Q D"]:
        """All tokens, or the first `asked`."""
        for number, layer in enumerate(self, 1):
            tokens = layer(tokens, asked if number == len(self) else None)
        return tokens[:, :asked]


# ------------------------------------------------------------------ the occlusion-aware ViT


Image = Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]  # colours in [-1, 1], or bytes


class Tokens(NamedTuple):
    """The encoder's output F: global, part (background first) and patch tokens."""

    cls: Float[Tensor, "B D"]  # f^g
    part: Float[Tensor, "B K1 D"]  # f^0 (background), f^1 ... f^K
    patch: Float[Tensor, "B N D"]  # f^p


class OcclusionAwareViT(nn.Module):
    """OA-ViT: a ViT with part tokens that is told where it looks, which camera, and what is hidden (Eq. 3-5).

    `parts` is K + 1 (0 for none), `coarse` is C.  gamma_1 and gamma_2 weigh the occlusion pattern's and the
    camera's embedding.  Of the `cameras`, training images are from those that are `trained`; () means all.
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
    ):
        super().__init__()
        self.patch = vit.patch_embed.patch_size[0]
        self.size, self.stride, self.parts = tuple(size), stride, parts
        self.grid = grid(size, self.patch, stride)
        self.gamma_pattern, self.gamma_camera = gamma_pattern, gamma_camera
        self.projection = vit.patch_embed.proj
        self.projection.stride = (stride, stride)
        self.norm_pre, self.blocks, self.norm = vit.norm_pre, vit.blocks, vit.norm
        self.cls = vit.cls_token
        width = vit.embed_dim
        self.part = nn.Parameter(_embedding(1, parts, width))  # P_t
        places = resize_positions(vit.pos_embed[:, 1:], vit.patch_embed.grid_size, self.grid)
        self.position = nn.Parameter(  # P_E, N + K + 2 rows
            torch.cat([vit.pos_embed[:, :1], _embedding(1, parts, width), places], 1).detach().clone()
        )
        self.pattern = nn.Parameter(_embedding(2**coarse, width))  # O_e
        self.camera = nn.Parameter(_embedding(cameras, width))
        self.trained = list(trained or range(cameras))
        attend_by(self, "written")

    @property
    def width(self) -> int:
        """D, channels of a token."""
        return self.cls.shape[-1]

    def forward(self, image: Image, hidden: Bool[Tensor, "B C"], camid: Int[Tensor, "B"]) -> Tokens:
        """F: tokens after the ViT's last norm.  `hidden` is z; camera -1 is unknown.

        Raises `ValueError` for an image of another size.
        """
        tokens = self.norm(self.blocks(self.norm_pre(self.embed(image, hidden, camid))))
        cls, part, patch = tokens.split([1, self.parts, self.grid[0] * self.grid[1]], 1)
        return Tokens(cls[:, 0], part, patch)

    def embed(
        self, image: Image, hidden: Bool[Tensor, "B C"], camid: Int[Tensor, "B"]
    ) -> Float[Tensor, "B L D"]:
        """The input sequence E = [x_cls; P_t; P_s] + P_E + gamma_1 E_o + gamma_2 C_e, Eq. 5.

        Bytes become colours here, where the network is: a quarter of the colours' size travels there.
        """
        if tuple(image.shape[2:]) != self.size:
            raise ValueError(f"image of {tuple(image.shape[2:])}, the model takes {self.size}")
        image = colours(image) if image.dtype == torch.uint8 else image
        patch = self.projection(image).flatten(2).transpose(1, 2)
        learned = torch.cat([self.cls, self.part], 1).expand(image.shape[0], -1, -1)
        given = self.gamma_pattern * self.pattern[occlusion.pattern(hidden)]  # Eq. 3
        given = given + self.gamma_camera * self.camera_rows(camid)
        return torch.cat([learned.to(patch.dtype), patch], 1) + self.position + given[:, None]

    def camera_rows(self, camid: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """C_e of each image, Eq. 5.  Departs: the mean trained row where the camera is unknown (-1).

        Raises `ValueError` for a camera that the model was not trained with; an exported graph, which
        cannot, is left to its runtime's own error.
        """
        if not torch.compiler.is_exporting() and len(camid) and int(camid.max()) >= len(self.camera):
            raise ValueError(
                f"camera {int(camid.max())}, but the model knows {len(self.camera)}; pass -1 if unknown"
            )
        table = torch.cat([self.camera[self.trained].mean(0, keepdim=True), self.camera])
        return table[camid.clamp(min=-1) + 1]


def _embedding(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(*shape), std=0.02)


def untold(vit: VisionTransformer, size: tuple[int, int]) -> OcclusionAwareViT:
    """A ViT as it comes, for images of `size` (height, width): without part tokens, and told nothing."""
    return OcclusionAwareViT(vit, size, vit.patch_embed.patch_size[0], 0, 1, 1, 0.0, 0.0)


@torch.no_grad()
def class_tokens(encoder: OcclusionAwareViT, image: Image) -> Float[Tensor, "B D"]:
    """L2-normalised class tokens of an `untold` ViT: what retrieval has before any training of ours."""
    nothing = torch.zeros(len(image), 1, dtype=torch.bool, device=image.device)
    unknown = torch.full((len(image),), -1, device=image.device)
    return F.normalize(encoder(image, nothing, unknown).cls, dim=-1)
