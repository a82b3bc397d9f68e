"""Self-supervised pretraining and trustworthy evaluation for gray and color medical images."""

__version__ = "0.1.0"
