"""Checks of a label set: each compares a statistic with thresholds and gives a sentence if it is beyond."""

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from pipeline.data import parts
from pipeline.labels.quality import statistics

# a value beyond the first threshold is most likely a mistake, beyond the second worth a look

# fit of an image's own map over that of another's: 1.8 on rendered people, 1.5 with poor parsers, 1.0 if
# shuffled
FIT = (1.15, 1.3)
NOBODY = (0.2, 0.02)  # share of the images
AMBIGUOUS = (0.5, 0.1)
HIDDEN = (0.8, 0.2)  # share of the training images in which a coarse part is hidden
HOLES = (0.1, 0.02)  # share of the images with head and legs, but no torso; 0.001 on rendered people
REPEATED = (0.1, 0.01)  # share of the maps that equal another image's
SIDES = (4.0, 2.0)  # pixels of a left part over those of the right one, or the reverse
TRUTH = (0.7, 0.85)  # balanced accuracy
ORDER = (("head", "torso"), ("torso", "left leg"), ("torso", "right leg"))  # from the top down
PAIRS = (("left arm", "right arm"), ("left leg", "right leg"), ("left foot", "right foot"))

Level = Literal["wrong", "look"]


class Finding(NamedTuple):
    """A sentence about the labels; `wrong` is most likely a mistake, `look` wants a look."""

    level: Level
    text: str


def check_labels(report: dict[str, Any], survey: statistics.Survey, patterns: pd.DataFrame) -> list[Finding]:
    """What is wrong with a label set or wants a look, the worst first."""
    findings = [
        *_low(report["fit"]["own"] / max(report["fit"]["other"], 1e-9), FIT,
              "Maps and images seem out of step: an image's own map explains {:.2f} times as much of its "
              "colours as another image's map does. Are the labels those of these images, in this order?"),
        *_high(report["no_person"] / report["images"], NOBODY, "In {:.0%} of the images nobody was found."),
        *_high(report["ambiguous"] / report["images"], AMBIGUOUS,
               "In {:.0%} of the images two people were nearly as likely to be the target."),
        *_high(report["repeated"] / report["images"], REPEATED,
               "{:.0%} of the maps equal another image's to the pixel."),
        *_high(_holes(survey), HOLES, "In {:.1%} of the images the torso is missing between head and legs."),
        *_hidden(report, patterns), *_places(survey), *_sides(survey),
    ]  # fmt: skip
    if report["unseen"]:
        total, types = sum(report["unseen"].values()), ", ".join(report["unseen"])
        text = f"Test images with an occlusion type that training never saw: {total:,} (z = {types})."
        findings.append(Finding("look", text))
    if "all" in report and (accuracy := report["all"]["balanced_accuracy"]["mean"]) is not None:
        findings += _low(accuracy, TRUTH, "Flags agree poorly with the truth: balanced accuracy {:.2f}.")
    return sorted(findings, key=lambda finding: finding.level != "wrong")


def _high(value: float, bounds: tuple[float, float], text: str) -> list[Finding]:
    wrong, look = bounds
    level: Level | None = "wrong" if value > wrong else "look" if value > look else None
    return [Finding(level, text.format(value))] if level else []


def _low(value: float, bounds: tuple[float, float], text: str) -> list[Finding]:
    wrong, look = bounds
    level: Level | None = "wrong" if value < wrong else "look" if value < look else None
    return [Finding(level, text.format(value))] if level else []


def _holes(survey: statistics.Survey) -> float:
    visible = dict(zip(parts.FINE, (survey.pixels > 0).T, strict=True))
    legs = visible["left leg"] | visible["right leg"]
    return float((visible["head"] & legs & ~visible["torso"]).mean())


def _hidden(report: dict[str, Any], patterns: pd.DataFrame) -> list[Finding]:
    train, findings = patterns["train"], []
    for c, name in enumerate(report["hidden"]):
        share = sum(n for z, n in train.items() if z[c] == "1") / max(train.sum(), 1)
        findings += _high(share, HIDDEN, f"{name.capitalize()} hidden in {{:.0%}} of the training images.")
    if train.sum() and set(patterns.index[train > 0]) == {"0" * len(report["hidden"])}:
        findings.append(Finding("look", "Nothing is hidden in any training image: is lambda too small?"))
    return findings


def _places(survey: statistics.Survey) -> list[Finding]:
    absent = [name for name, count in zip(parts.FINE, survey.pixels.sum(0), strict=True) if not count]
    findings = [Finding("look" if "foot" in name else "wrong", f"No map shows a {name}.") for name in absent]
    rows = np.arange(survey.frequency.shape[1])
    mean = {
        name: (plane.sum(1) * rows).sum() / plane.sum()
        for name, plane in zip(parts.FINE, survey.frequency[1:], strict=True)
        if name not in absent
    }
    for above, below in ORDER:
        if above in mean and below in mean and mean[above] >= mean[below]:
            findings.append(Finding("wrong", f"The {above} lies below the {below} on average."))
    return findings


def _sides(survey: statistics.Survey) -> list[Finding]:
    total, findings = dict(zip(parts.FINE, survey.pixels.sum(0), strict=True)), []
    for pair in PAIRS:
        smaller, larger = sorted(pair, key=lambda name: total[name])
        if total[smaller]:
            text = f"The {larger} has {{:.1f}} times as many pixels as the {smaller}: are the sides right?"
            findings += _high(total[larger] / total[smaller], SIDES, text)
    return findings
