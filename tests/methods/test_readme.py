"""The tables of the methods' README are those of the code."""

from pathlib import Path

import pytest

from pipeline.methods.base import load_method
from pipeline.methods.presets import ENCODER_AND_HEADS, RECIPE, SCHEDULE
from tests.methods.test_contract import METHODS

README = Path("pipeline/methods/README.md").read_text()


def listed(heading, *sections):
    """The rows of params in a section of the README."""
    (text,) = [part for part in README.split("\n## ") if part.startswith(f"{heading}\n")]
    starts = tuple(f"| `{section}." for section in sections)
    return [line for line in text.splitlines() if line.startswith(starts)]


def lines(rows):
    return [f"| `{name}` | {paper} | {ours} | {why} |" for name, (ours, paper, why) in rows.items()]


def different(rows, base):
    return {name: row for name, row in rows.items() if base.get(name) != row}


def test_the_base_recipe_lists_what_all_methods_share_and_what_those_after_transreid_share():
    shared = {f"<method>.{name}": row for name, row in ENCODER_AND_HEADS.items()} | SCHEDULE
    wanted = lines(shared) + lines(different(RECIPE, SCHEDULE))
    assert listed("The base recipe", "<method>", "train") == wanted


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_section_lists_what_it_adds_to_the_base_recipe_or_sets_differently(name):
    shared = {f"{name}.{row}": values for row, values in ENCODER_AND_HEADS.items()}
    presets = load_method(name).PRESETS
    own = min((different(presets, shared | base) for base in (SCHEDULE, RECIPE)), key=len)
    assert listed(f"`{name}`", name, "train") == lines(own)
