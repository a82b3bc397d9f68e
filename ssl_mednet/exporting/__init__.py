"""Weights and classifiers in the forms that other programs read: timm, a model hub, ONNX, and entries of our own zoo."""
