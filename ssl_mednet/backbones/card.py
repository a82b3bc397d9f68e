"""The model card of an artifact, written from its config; its head is what model hubs read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Identifiers that hubs know, by our SPDX ones; anything else is "other" with its name beside it.
_HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-3-clause", "unlicense", "cc0-1.0", "odbl-1.0"),
        *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
        *("cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    }
)


HERE = "PATH_OF_THIS_FOLDER"


def model_card(config: dict[str, Any], place: str = HERE) -> str:
    """A README for the weights, from their config.

    Args:
        place: what the examples call the weights: a path, or a name that this package knows.
    """
    ours, pre = config["ssl_mednet"], config["ssl_mednet"]["preprocessing"]
    recipe = ours.get("recipe", {})
    method = recipe.get("method", {}).get("name", "unknown")
    title = ours.get("name") or recipe.get("name", config["architecture"])
    timm_place = f'"local-dir:{place}"' if place == HERE else f'"local-dir:" + weights_path("{place}")'
    imports = "" if place == HERE else "from ssl_mednet import weights_path\n"
    return f"""---
{front_matter(config)}---
# {title}

`{config["architecture"]}` pretrained on unlabeled {pre["channels"]} medical images with `{method}`.

| | |
| --- | --- |
{_table(config)}

```python
import timm
{imports}
model = timm.create_model({timm_place}, pretrained=True)

from ssl_mednet import load_backbone  # or with the preprocessing attached

model = load_backbone("{place}")
features = model(model.preprocessing(images))  # images [B, C, H, W] in [0, 1]
```
{_figures(ours)}{_limits(ours)}
## May these weights be published?

{_bullets(ours.get("data", {}).get("publishing", ["Check the licences of the data first."]))}

Not a medical device; not for diagnosis. Evaluate on your own data before you draw conclusions.
"""


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
        keys = {"license": "other", "license_name": licence.lower().replace(" ", "-").replace(":", "-"), **keys}
    tags = ["medical-imaging", "self-supervised", "timm", ours["preprocessing"]["channels"]]
    return "".join(f"{k}: {v}\n" for k, v in keys.items()) + f"tags: [{', '.join(tags)}]\n"


def _table(config: dict[str, Any]) -> str:
    ours, pre = config["ssl_mednet"], config["ssl_mednet"]["preprocessing"]
    data, parent = ours.get("data", {}), ours.get("parent")
    licences = ", ".join(f"{licence} ({count} images)" for licence, count in data.get("licences", {}).items())
    rows = [
        ("input", f"{pre['channels']}, {pre['image_size']} x {pre['image_size']}, values in [0, 1]"),
        (
            "normalisation",
            f"mean {[round(m, 4) for m in pre['mean']]}, std {[round(s, 4) for s in pre['std']]}",
        ),
        ("output", f"{config['num_features']} features"),
        ("trained on", f"{data.get('source', 'unknown')}: {data.get('images', '?')} images"),
        ("licences of the data", licences or "not stated"),
        ("licence of the weights", ours.get("licence") or "not stated"),
        ("steps", f"{ours.get('steps', '?')}{_chosen(ours.get('chosen', {}))}"),
        ("sha256", f"`{ours.get('sha256', '')}`"),
    ]
    if parent:
        rows.insert(4, ("started from", f"{parent['weights']} (sha256 `{parent['sha256']}`)"))
    return "\n".join(f"| {name} | {said} |" for name, said in rows)


def _chosen(said: dict[str, Any]) -> str:
    """Which step the weights are of, where they are not the last ones, and why."""
    if said.get("by", "last") == "last":
        return ""
    return f"; the weights are of step {said['step']}: best {said['why']} ({said['value']:.4g})"


def _figures(ours: dict[str, Any]) -> str:
    """Measured figures as a table; nothing where there are none."""
    if not ours.get("figures"):
        return ""
    head = "| set | protocol | metric | value | 95 % interval | test images |\n| --- | --- | --- | --- | --- | --- |"
    lines = [
        f"| {f['task']} | {f['protocol']} | {f['metric']} | {f['value']:.3f} | {f['low']:.3f} to {f['high']:.3f} | "
        f"{f['n']} |"
        for f in ours["figures"]
    ]
    return "\n".join(["\n## Figures\n", head, *lines, ""])


def _limits(ours: dict[str, Any]) -> str:
    return f"\n## Limits\n\n{_bullets(ours['limits'])}\n" if ours.get("limits") else ""


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
