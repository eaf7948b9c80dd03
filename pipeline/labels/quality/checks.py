"""Checks of a label set: each compares a statistic with thresholds and gives a sentence if it is beyond."""

from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.data import parts
from pipeline.labels.quality import statistics

# a value beyond the first threshold is most likely a mistake, beyond the second worth a look

# fit of an image's own map over that of another's: 1.8 on rendered people, 1.5 with poor parsers, 1.0 if
# shuffled; of a split with fewer images than FEWEST chance decides
FIT = (1.15, 1.3)
FEWEST = 30
NOBODY = (0.2, 0.02)  # share of the images
AMBIGUOUS = (0.5, 0.1)
# share of the images with a person in which a coarse part is hidden; queries may be chosen to be occluded
HIDDEN = {"train": (0.8, 0.2), "query": (0.8, 0.5), "gallery": (0.8, 0.5)}
HOLES = (0.1, 0.02)  # share of the images with head and legs, but no torso; 0.001 on rendered people
REPEATED = (0.1, 0.01)  # share of the maps that equal another image's
UNSEEN = (0.5, 0.01)  # share of the test images whose occlusion type no training image has
SIDES = (4.0, 2.0)  # pixels of a left part over those of the right one, or the reverse
TRUTH = (0.7, 0.85)  # balanced accuracy
# share of a part's pixels in a band of the person's height where others lie: 0.02 on rendered people, 0.10 of
# the arms if the lower half of every head belongs to them
ELSEWHERE = (0.08, 0.04)
ORDER = (("head", "torso"), ("torso", "left leg"), ("torso", "right leg"))  # from the top down
PAIRS = (("left arm", "right arm"), ("left leg", "right leg"), ("left foot", "right foot"))
BAND_NAMES = {
    statistics.HEAD_BAND: "heads", statistics.TRUNK_BAND: "arms and torso", statistics.LEGS_BAND: "legs",
}  # fmt: skip
# bands in which a part does not lie; coats reach to the legs
FOREIGN = {
    "head": (statistics.TRUNK_BAND, statistics.LEGS_BAND),
    "arms": (statistics.HEAD_BAND, statistics.LEGS_BAND),
    "torso": (statistics.HEAD_BAND,),
    "legs": (statistics.HEAD_BAND,),
    "feet": (statistics.HEAD_BAND, statistics.TRUNK_BAND),
}
SPLIT_NAMES = {"train": "training", "query": "query", "gallery": "gallery"}

Level = Literal["wrong", "look"]


class Finding(NamedTuple):
    """A sentence about the labels; `wrong` is most likely a mistake, `look` wants a look."""

    level: Level
    text: str


def check_labels(report: dict[str, Any], survey: statistics.Survey) -> list[Finding]:
    """What is wrong with a label set or wants a look, the worst first.

    What a folder of labels may get wrong for one split is judged by the worst split.
    """
    splits = {s: counts for s, counts in report["splits"].items() if counts["images"]}
    nobody = {s: counts["no_person"] / counts["images"] for s, counts in splits.items()}
    ambiguous = {s: counts["ambiguous"] / counts["images"] for s, counts in splits.items()}
    findings = [
        *_fit(splits),
        *_worst(nobody, NOBODY, "In {:.0%} of the {} images nobody was found."),
        *_worst(ambiguous, AMBIGUOUS,
                "In {:.0%} of the {} images two people were nearly as likely to be the target."),
        *_high(report["repeated"] / report["images"], REPEATED,
               "{:.0%} of the maps equal another image's to the pixel."),
        *_high(_holes(survey), HOLES, "In {:.1%} of the images the torso is missing between head and legs."),
        *_hidden(splits), *_places(survey), *_elsewhere(survey), *_sides(survey),
    ]  # fmt: skip
    if report["unseen"]:
        tested = max(sum(splits[s]["images"] for s in ("query", "gallery") if s in splits), 1)
        text = "{:.0%} of the test images have an occlusion type that training never saw (z = {})."
        findings += _high(sum(report["unseen"].values()) / tested, UNSEEN, text, ", ".join(report["unseen"]))
    if "all" in report and (accuracy := report["all"]["balanced_accuracy"]["mean"]) is not None:
        findings += _low(accuracy, TRUTH, "Flags agree poorly with the truth: balanced accuracy {:.2f}.")
    return sorted(findings, key=lambda finding: finding.level != "wrong")


def _high(value: float, bounds: tuple[float, float], text: str, *names: str) -> list[Finding]:
    wrong, look = bounds
    level: Level | None = "wrong" if value > wrong else "look" if value > look else None
    return [Finding(level, text.format(value, *names))] if level else []


def _low(value: float, bounds: tuple[float, float], text: str, *names: str) -> list[Finding]:
    wrong, look = bounds
    level: Level | None = "wrong" if value < wrong else "look" if value < look else None
    return [Finding(level, text.format(value, *names))] if level else []


def _worst(shares: dict[str, float], bounds: tuple[float, float], text: str) -> list[Finding]:
    split = max(shares, key=lambda s: shares[s])
    return _high(shares[split], bounds, text, SPLIT_NAMES[split])


def _fit(splits: dict[str, Any]) -> list[Finding]:
    fits = {s: c["fit"] for s, c in splits.items() if c["fit"] and c["fit"]["images"] >= FEWEST}
    findings = [
        Finding("wrong", f"The maps of the {SPLIT_NAMES[s]} images seem moved by one row: the map of the "
                f"{'next' if fit['moved'] > 0 else 'previous'} row fits an image's colours better than its "
                "own. Are there as many labels as images, in the same order?")
        for s, fit in fits.items() if fit["moved"]
    ]  # fmt: skip
    ratios = {s: fit["own"] / max(fit["other"], 1e-9) for s, fit in fits.items() if not fit["moved"]}
    if ratios:
        split = min(ratios, key=lambda s: ratios[s])
        text = (
            "Maps and {1} images seem out of step: an image's own map explains {0:.2f} times as much of its "
            "colours as another image's map does. Are the labels those of these images, in this order?"
        )
        findings += _low(ratios[split], FIT, text, SPLIT_NAMES[split])
    return findings


def _holes(survey: statistics.Survey) -> float:
    visible = dict(zip(parts.FINE, (survey.pixels > 0).T, strict=True))
    legs = visible["left leg"] | visible["right leg"]
    return float((visible["head"] & legs & ~visible["torso"]).mean())


def _hidden(splits: dict[str, Any]) -> list[Finding]:
    people = {s: counts["images"] - counts["no_person"] for s, counts in splits.items()}
    findings = []
    for name in next(iter(splits.values()))["hidden"]:
        text = f"{name.capitalize()} hidden in {{:.0%}} of the {{}} images that show a person."
        shares = {s: counts["hidden"][name] / max(people[s], 1) for s, counts in splits.items()}
        of_part = [f for s in shares for f in _high(shares[s], HIDDEN[s], text, SPLIT_NAMES[s])]
        findings += sorted(of_part, key=lambda finding: finding.level != "wrong")[:1]
    if people.get("train") and not splits["train"]["hide_part"]:
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


def _elsewhere(survey: statistics.Survey) -> list[Finding]:
    merged = {name: survey.bands[:, np.array(fine) - 1].sum(1) for name, fine in parts.COARSE[5].items()}
    findings = []
    for name, bands in FOREIGN.items():
        for band in bands:
            share = merged[name][band] / max(merged[name].sum(), 1)
            text = (
                f"{{:.0%}} of the pixels of the {name} lie where {BAND_NAMES[band]} usually are. One class "
                "of the label maps seems to cover both, as skin covers face and arms: take a parser that "
                "tells them apart, or name that class background in labels_from."
            )
            if share < 1 - ELSEWHERE[0]:  # else the part is misplaced, not in two places
                findings += _high(share, ELSEWHERE, text)
    return findings


def _sides(survey: statistics.Survey) -> list[Finding]:
    total, findings = dict(zip(parts.FINE, survey.pixels.sum(0), strict=True)), []
    for pair in PAIRS:
        smaller, larger = sorted(pair, key=lambda name: total[name])
        if total[smaller]:
            text = f"The {larger} has {{:.1f}} times as many pixels as the {smaller}: are the sides right?"
            findings += _high(total[larger] / total[smaller], SIDES, text)
    return findings
