"""The card of a classifier: what it tells apart, how well, on what it was built, and how to use it."""

from __future__ import annotations

from typing import Any

from ssl_mednet.backbones.card import in_words

_SHOWN = {
    "auroc": "AUROC (macro)",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "average_precision": "average precision (macro)",
    "ece": "calibration error",
    "ece_calibrated": "calibration error, calibrated",
}


def model_readme(name: str, about: dict[str, Any]) -> str:
    """A README for a model folder, from the content of its ``model.json``."""
    weights, data, pre = about["weights"], about["data"], about["preprocessing"]
    skipped = f"; {data['skipped']} of its files could not be used" if data.get("skipped") else ""
    licences = ", ".join(f"{licence} ({count} images)" for licence, count in data["licences"].items())
    limits = ", ".join(f"{c} from {p:.3f}" for c, p in about["thresholds"].items()) or "the most probable class"
    point = about["operating_point"]
    shown = [
        (title + (_rule(about) if key in point.get("metrics", {}) else ""), about["metrics"][key])
        for key, title in _SHOWN.items()
        if key in about["metrics"]
    ]
    figures = [f"| {title} | {' | '.join(in_words(metric))} |" for title, metric in shown + _point(point)]
    notes = [f"Measured on {about['n']} images: {about['measured_on']}; intervals over {about['intervals_by']}s."]
    notes += [f"The {' and '.join(about['splits_made'])} split was made here."] if about["splits_made"] else []
    notes += [f"{about['note']}."] if about["note"] else []
    if point:
        notes.append(f"What it says is decided at thresholds from {point['thresholds_from']}, as by `predict`.")
    before, after = (about["metrics"].get(key, {}).get("value", 0.0) for key in ("ece", "ece_calibrated"))
    if after > before:
        notes.append("The temperature did not help on these images: calibration error is higher with it.")
    exact, near = (about.get("copies", {}).get(kind, 0) for kind in ("exact", "near"))
    if exact + near:
        whose = "in another fold" if about["measured_on"] == "cross-validation" else "among the training images"
        notes.append(
            f"Of these images {exact} have an equal and {near} a nearly equal one {whose}: the figures flatter."
        )
    notes.append(
        "`results/` and `report.html` hold small pictures of the labelled images, which `predict` does not need: "
        "delete both before you pass the model on."
    )
    return f"""---
library_name: ssl-mednet
tags: [medical-imaging, image-classification, {about["channels"]}]
---
# {name}

Tells {", ".join(about["classes"])} apart in {about["channels"]} images ({", ".join(about["modalities"])}).

| | |
| --- | --- |
| made by | `{about["protocol"]}` on {data["images"]} labelled images of {data["source"]}{skipped} |
| backbone | {weights["weights"]} (`{weights["architecture"]}`, sha256 `{weights["sha256"][:16]}`) |
| input | {about["channels"]}, {pre["image_size"]} x {pre["image_size"]}, values in [0, 1] |
| says | {limits} |
| temperature | {about["temperature"]:.3f} |
| licences of the labelled images | {licences} |

| metric | value | 95 % interval |
| --- | --- | --- |
{chr(10).join(figures)}

{" ".join(notes)}

```bash
ssl-mednet predict --model PATH_OF_THIS_FOLDER FILES... --out predictions.csv
ssl-mednet export PATH_OF_THIS_FOLDER --format onnx --out ONNX_FOLDER
```

Images unlike those of the training are flagged, by the distance of their features; what is like them may still be
something that the model has never seen.

## May it be published?

{chr(10).join(f"- {line}" for line in data["publishing"])}

Not a medical device; not for diagnosis. Evaluate on your own data before you draw conclusions.
"""


def _rule(about: dict[str, Any]) -> str:
    return ", each finding at 0.5" if about["multilabel"] else " at the most probable class"


def _point(point: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """How good what ``predict`` says is."""
    rows = [(f"{_SHOWN[key]} of what it says", metric) for key, metric in point.get("metrics", {}).items()]
    for name, rates in point.get("findings", {}).items():
        rows += [(f"{rate} for {name}", metric) for rate, metric in rates.items()]
    return rows
