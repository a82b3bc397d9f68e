"""Weights and classifiers as other programs read them: timm, a model hub, ONNX; and entries of our own zoo."""
