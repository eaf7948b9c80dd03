"""Identities: a person is a combination of garments, colours, hair style, build and bag.

Palettes are small on purpose.  Many people wear a black jacket over blue jeans, so only the whole combination
of attributes distinguishes them.
"""

import dataclasses

import numpy as np

Colour = tuple[int, int, int]

UPPER_COLOURS: dict[str, Colour] = {
    "black": (34, 34, 38),
    "grey": (116, 118, 122),
    "white": (214, 212, 206),
    "navy": (40, 48, 82),
    "blue": (76, 110, 158),
    "red": (152, 46, 48),
    "green": (66, 92, 70),
    "beige": (178, 158, 128),
}
LOWER_COLOURS: dict[str, Colour] = {
    "black": (36, 36, 40),
    "jeans": (58, 72, 104),
    "light jeans": (104, 124, 154),
    "grey": (92, 94, 98),
    "khaki": (142, 128, 100),
}
SECOND_COLOURS: dict[str, Colour] = {"white": (208, 206, 200), "black": (30, 30, 34), "red": (158, 44, 46)}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (26, 23, 22),
    "brown": (74, 50, 36),
    "blond": (170, 134, 84),
    "grey": (140, 138, 136),
}
SKINS: dict[str, Colour] = {
    "pale": (226, 186, 164),
    "tan": (204, 158, 128),
    "brown": (150, 106, 80),
    "dark": (96, 66, 50),
}
SHOE_COLOURS: dict[str, Colour] = {"black": (30, 29, 30), "white": (206, 204, 200), "brown": (92, 64, 44)}
BAG_COLOURS: dict[str, Colour] = {"black": (36, 35, 38), "red": (146, 48, 46), "brown": (118, 84, 56)}

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "upper_kind": ("shirt", "t-shirt", "hoodie", "jacket", "coat"),
    "upper_colour": tuple(UPPER_COLOURS),
    "upper_pattern": ("plain", "stripes", "checks", "print", "two-tone"),
    "second_colour": tuple(SECOND_COLOURS),
    "sleeve": ("long", "short"),
    "lower_kind": ("trousers", "shorts", "skirt"),
    "lower_colour": tuple(LOWER_COLOURS),
    "hair_style": ("short", "bob", "long", "ponytail", "bald", "cap"),
    "hair_colour": tuple(HAIR_COLOURS),
    "skin": tuple(SKINS),
    "shoes": tuple(SHOE_COLOURS),
    "bag": ("none", "backpack", "handbag", "shoulder bag"),
    "bag_colour": tuple(BAG_COLOURS),
}
"""Attribute -> its class names; a class id is the position in the tuple."""

PROBABILITIES: dict[str, tuple[float, ...]] = {
    "upper_kind": (0.24, 0.24, 0.16, 0.22, 0.14),
    "upper_colour": (0.22, 0.15, 0.14, 0.13, 0.1, 0.1, 0.08, 0.08),
    "upper_pattern": (0.44, 0.15, 0.13, 0.14, 0.14),
    "second_colour": (0.5, 0.3, 0.2),
    "sleeve": (0.65, 0.35),
    "lower_kind": (0.68, 0.17, 0.15),
    "lower_colour": (0.34, 0.3, 0.14, 0.12, 0.1),
    "hair_style": (0.36, 0.14, 0.18, 0.12, 0.08, 0.12),
    "hair_colour": (0.42, 0.32, 0.15, 0.11),
    "skin": (0.34, 0.34, 0.18, 0.14),
    "shoes": (0.5, 0.3, 0.2),
    "bag": (0.4, 0.25, 0.15, 0.2),
    "bag_colour": (0.5, 0.25, 0.25),
}


@dataclasses.dataclass(frozen=True)
class Person:
    """One identity: class names as in `ATTRIBUTES`, and continuous build."""

    upper_kind: str
    upper_colour: str
    upper_pattern: str
    second_colour: str
    sleeve: str
    lower_kind: str
    lower_colour: str
    hair_style: str
    hair_colour: str
    skin: str
    shoes: str
    bag: str
    bag_colour: str
    width: float  # girth relative to the average, about 0.85 to 1.2
    shape: float  # 0 straight to 1 curved: narrow waist and shoulders, wide hips
    head: float  # head size relative to the average
    legs: float  # leg length relative to the average
    bag_side: int  # +1 the person's left, -1 the right
    hem: float  # length of coat, skirt or shorts, 0 short to 1 long
    variety: int  # seeds details without a class: stripe widths, the shape of a print


def _choice(rng: np.random.Generator, name: str) -> str:
    return str(rng.choice(ATTRIBUTES[name], p=PROBABILITIES[name]))


def _consistent(look: dict[str, str]) -> dict[str, str]:
    """Replace combinations that nobody wears: a coat has long sleeves, a two-tone needs two tones."""
    if look["upper_kind"] in ("coat", "jacket", "hoodie"):
        look["sleeve"] = "long"
    if look["upper_kind"] == "coat":
        look["upper_pattern"] = "plain"
        look["lower_kind"] = "trousers" if look["lower_kind"] == "shorts" else look["lower_kind"]
    if look["second_colour"] == look["upper_colour"]:
        look["second_colour"] = "black" if look["upper_colour"] == "white" else "white"
    return look


def sample_person(rng: np.random.Generator) -> Person:
    """A random person."""
    look = _consistent({name: _choice(rng, name) for name in ATTRIBUTES})
    return Person(
        **look,
        width=float(np.clip(rng.normal(1.0, 0.09), 0.84, 1.22)),
        shape=float(rng.beta(2, 2) * (0.6 if look["hair_style"] in ("short", "bald", "cap") else 1)),
        head=float(rng.uniform(0.95, 1.08)),
        legs=float(rng.uniform(0.96, 1.04)),
        bag_side=int(rng.choice((-1, 1))),
        hem=float(rng.uniform()),
        variety=int(rng.integers(2**31)),
    )


def attribute_classes(person: Person) -> dict[str, int]:
    """Class id of every attribute, in the order of `ATTRIBUTES`."""
    return {name: ATTRIBUTES[name].index(getattr(person, name)) for name in ATTRIBUTES}


assert set(ATTRIBUTES) <= {field.name for field in dataclasses.fields(Person)}
