"""Physics of single modalities as augmentations: what really varies between scanners, stains and rooms."""
