"""The model card of an artifact, written from its config; its head is what model hubs read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from ssl_mednet.files import with_nan

# Identifiers that hubs know, by our SPDX ones; anything else is "other" with its name beside it.
_HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-3-clause", "unlicense", "cc0-1.0", "odbl-1.0"),
        *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
        *("cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    }
)


HERE = "PATH_OF_THIS_FOLDER"
HUB = "YOUR_NAME/THIS_REPOSITORY"
FINETUNED = "fine-tuning with labels"  # the method of weights that a classifier was fine-tuned from


def model_card(config: dict[str, Any], place: str = HERE) -> str:
    """A README for the weights as timm loads them, from their config.

    Args:
        place: what the examples call the weights: a path, :data:`HUB`, or a name that this package knows.
    """
    imports, timm_place, ours, ours_place = {
        HERE: ("", f'"local-dir:{HERE}"', "", f'"{HERE}"'),
        HUB: ("", f'"hf_hub:{HUB}"', "from huggingface_hub import snapshot_download\n", f'snapshot_download("{HUB}")'),
    }.get(place, ("from ssl_mednet import weights_path\n", f'"local-dir:" + weights_path("{place}")', "", f'"{place}"'))
    usage = f"""```python
import timm
{imports}
model = timm.create_model({timm_place}, pretrained=True)

{ours}from ssl_mednet import load_backbone  # or with the preprocessing attached

model = load_backbone({ours_place})
features = model(model.preprocessing(images))  # images [B, C, H, W] in [0, 1]
```"""
    return card(config, usage)


def card(
    config: dict[str, Any], usage: str, library: str = "timm", lead: str = "", more: Iterable[tuple[str, str]] = ()
) -> str:
    """A README for weights in any form.

    Args:
        usage: an example of how they are used, in Markdown.
        library: what loads them, as hubs call it.
        lead: the first sentence; by default what they are and how they were trained.
        more: further rows of the table.
    """
    ours = config["ssl_mednet"]
    title = ours.get("name") or ours.get("recipe", {}).get("name", config["architecture"])
    return f"""---
{front_matter(config, library_name=library)}---
# {title}

{lead or _lead(config)}

| | |
| --- | --- |
{_table(config, more)}

{usage}
{_figures(ours)}{_limits(ours)}
## May these weights be published?

{_bullets(ours.get("data", {}).get("publishing", ["Check the licences of the data first."]))}

Not a medical device; not for diagnosis. Evaluate on your own data before you draw conclusions.
"""


def _lead(config: dict[str, Any]) -> str:
    ours, name = config["ssl_mednet"], config["architecture"]
    channels, method = ours["preprocessing"]["channels"], ours.get("recipe", {}).get("method", {}).get("name", "")
    parent = ours.get("parent", {}).get("weights", "")
    said = f"`{name}` pretrained on unlabeled {channels} medical images with `{method or 'unknown'}`."
    if method == FINETUNED:
        said = f"`{name}` fine-tuned with labels on {channels} medical images" + (
            f", from {parent}." if parent else "."
        )
    elif parent and not method:
        said = f"`{name}` with the weights of {parent} for {channels} images; nothing was trained on."
    if ours.get("without_head_for"):
        said += f"""

This is the backbone of a classifier alone: the head, which tells {", ".join(ours["without_head_for"])} apart, is not in
here. `ssl-mednet export MODEL --format onnx` takes both."""
    return said


def front_matter(config: dict[str, Any], **more: str) -> str:
    """The head of the card in YAML, with a line break at its end: licence, library, tags.

    Args:
        more: further keys.
    """
    ours = config["ssl_mednet"]
    keys: dict[str, str] = {"library_name": "timm", **more}
    licence = ours.get("licence")
    if licence and licence.lower() in _HUB_LICENCES:
        keys = {"license": licence.lower(), **keys}
    elif licence:
        name = re.sub(r"[^a-z0-9.+]+", "-", licence.lower()).strip("-") or "custom"
        # In YAML a bare yes is a truth and 1.0 a number.
        plain = re.fullmatch(r"[a-z][a-z0-9.+-]{3,}", name) and name not in ("true", "false", "null")
        keys = {"license": "other", "license_name": name if plain else f'"{name}"', **keys}
    method = ours.get("recipe", {}).get("method", {}).get("name", "")
    how = "fine-tuned" if method == FINETUNED else "self-supervised"
    how = "image-classification" if "classifier" in ours else how
    tags = ["medical-imaging", how, keys["library_name"], ours["preprocessing"]["channels"]]
    return "".join(f"{k}: {v}\n" for k, v in keys.items()) + f"tags: [{', '.join(tags)}]\n"


def _table(config: dict[str, Any], more: Iterable[tuple[str, str]]) -> str:
    ours, pre = config["ssl_mednet"], config["ssl_mednet"]["preprocessing"]
    data, parent = ours.get("data", {}), ours.get("parent")
    licences = ", ".join(f"{licence} ({count} images)" for licence, count in data.get("licences", {}).items())
    rows = [
        ("input", f"{pre['channels']}, {pre['image_size']} x {pre['image_size']}, values in [0, 1]"),
        (
            "normalisation",
            f"mean {[round(m, 4) for m in pre['mean']]}, std {[round(s, 4) for s in pre['std']]}",
        ),
        ("output", ours.get("classifier", {}).get("output") or f"{config['num_features']} features"),
        ("trained on", f"{data.get('source', 'unknown')}: {data.get('images', '?')} images"),
        ("licences of the data", licences or "not stated"),
        ("licence of the weights", ours.get("licence") or "not stated"),
        *([("steps", f"{ours['steps']}{_chosen(ours.get('chosen', {}))}")] if "steps" in ours else []),
        ("sha256", f"`{ours.get('sha256', '')}`"),
        *more,
    ]
    if contaminated := _test_images(data.get("held_out") or {}):
        rows.insert(4, ("test images among them", contaminated))
    backbone = ours.get("recipe", {}).get("backbone", {})
    if backbone.get("last_layer", "trained") != "trained":
        rows.insert(4, ("last layer", "made from statistics of those images, not trained"))
    if parent:
        kept = backbone.get("keep_start", 0)
        share = f"; kept of it: {kept:.0%}, the weights are averages".replace("%", " %") if kept else ""
        rows.insert(4, ("started from", f"{parent['weights']} (sha256 `{parent['sha256']}`){share}"))
    return "\n".join(f"| {name} | {said} |" for name, said in rows)


def _test_images(said: dict[str, Any]) -> str:
    """``"gray.yaml: 3 exact, 1 near (in what it started from)"``; empty where none are known."""
    own = [(said, "")] if "suite" in said else []
    audits = [*own, *((one, " (in what it started from)") for one in said.get("inherited", []))]
    return "; ".join(
        f"{one['suite']}: {one['exact']} exact, {one['near']} near{where}"
        for one, where in audits
        if one["exact"] or one["near"]
    )


def _chosen(said: dict[str, Any]) -> str:
    """Which step the weights are of, where they are not the last ones, and why."""
    if said.get("by", "last") == "last":
        return ""
    return f"; the weights are of step {said['step']}: best {said['why']} ({said['value']:.4g})"


def _figures(ours: dict[str, Any]) -> str:
    """Measured figures as a table; nothing where there are none."""
    if not ours.get("figures"):
        return ""
    counted = ours.get("classifier", {}).get("counted") or "test images"
    head = f"| set | protocol | metric | value | 95 % interval | {counted} |\n| --- | --- | --- | --- | --- | --- |"
    lines = [
        f"| {f['task']} | {f['protocol']} | {f['metric']} | {' | '.join(in_words(with_nan(f)))} | {f['n']} |"
        for f in ours["figures"]
    ]
    return "\n".join(["\n## Figures\n", head, *lines, ""])


def in_words(figure: dict[str, float]) -> tuple[str, str]:
    """A figure and its 95 % interval, or why there is none."""
    if math.isnan(figure["value"]):
        return "not defined", "one class only"
    if math.isnan(figure["low"]):
        return f"{figure['value']:.3f}", "one image or group only" if figure.get("resamples", 1) else "no resamples"
    return f"{figure['value']:.3f}", f"{figure['low']:.3f} to {figure['high']:.3f}"


def _limits(ours: dict[str, Any]) -> str:
    return f"\n## Limits\n\n{_bullets(ours['limits'])}\n" if ours.get("limits") else ""


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
