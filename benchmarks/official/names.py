"""Which tensors of the published code are which of ours.

One tensor of ours may be several of theirs, one after the other along its first axis.  Shapes differ by axes
of length 1 alone.
"""

from collections.abc import Iterable

from torch import Tensor

FIVE = ("", "_1", "_2", "_3", "_4")  # g and the local features of TransReID
STRIPES = range(4)  # of FED
EMBEDDINGS = {
    "encoder.projection.": "base.patch_embed.proj.",
    "encoder.cls": "base.cls_token",
    "encoder.position": "base.pos_embed",
    "encoder.camera": "base.sie_embed",
    "encoder.blocks.": "base.blocks.",
    "encoder.norm.": "base.norm.",
}
BEGINNINGS: dict[str, dict[str, str | list[str]]] = {  # the first that fits counts
    "transreid": {
        "encoder.blocks.11.": "b1.0.",
        "local.0.": "b2.0.",
        "local.1.": "b2.1.",
        "head.weight": [f"classifier{n}.weight" for n in FIVE],
        "head.necks.0.": [f"bottleneck{n}." for n in FIVE],
        **EMBEDDINGS,
        "encoder.norm.": "b1.1.",
    },
    "dpm": {
        **{
            f"generator.layers.{4 * n + m}.": f"base.ConvLayer.{2 * n}.{m}." for n in range(3) for m in (0, 1)
        },
        "generator.linear.": "base.attfc.",
        "head.weight": "classifier.weight",
        "head.necks.0.": "bottleneck.",
        **EMBEDDINGS,
    },
    "fed": {
        **{
            f"erasing.detectors.{stripe}.{layer}.": f"mask_detection.{stripe}.{layer}."
            for stripe in STRIPES
            for layer in range(3)
        },
        "diffusion.attention.query.": "cross_attention.q.",
        "diffusion.attention.key_value.": "cross_attention.kv.",
        "diffusion.attention.proj.": "cross_attention.proj.",
        "diffusion.before.norm.": "ffn2.layers2.norm.",
        "diffusion.before.inner.": "ffn2.layers2.fn.net.0.",
        "diffusion.before.proj.": "ffn2.layers2.fn.net.3.",
        "diffusion.after.norm.": "ffn3.layers2.norm.",
        "diffusion.after.inner.": "ffn3.layers2.fn.net.0.",
        "diffusion.after.proj.": "ffn3.layers2.fn.net.3.",
        "head.weight": "classifier1.weight",
        "diffused_head.weight": "classifier2.weight",
        "global_head.weight": "classifier3.weight",
        "head.necks.0.": [f"bottleneck_local.{stripe}." for stripe in STRIPES],
        **{ours: theirs for ours, theirs in EMBEDDINGS.items() if ours != "encoder.camera"},
    },
}


def theirs_of(method: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Their names of tensors of ours; those without one are left out."""
    pairs = {}
    for name in names:
        for ours, theirs in BEGINNINGS[method].items():
            if name.startswith(ours):
                starts = [theirs] if isinstance(theirs, str) else theirs
                pairs[name] = [start + name.removeprefix(ours) for start in starts]
                break
    return pairs


def as_theirs(method: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of ours by their names, in our shapes."""
    pairs = theirs_of(method, tensors)
    return {
        name: part
        for ours, names in pairs.items()
        for name, part in zip(names, tensors[ours].chunk(len(names)), strict=True)
    }
