"""A run of seconds, which tests kill, stop and spoil."""

SMALL = {
    "name": "small",
    "data": {"source": "phantoms:gray?n=60", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_resnet"},
    "method": {"name": "byol", "hidden_dim": 32, "output_dim": 16},
    "optim": {"batch_size": 8},
    "train": {"steps": 6, "checkpoint_every": 2, "device": "cpu", "precision": "float32"},
    "monitor": {"every": 1, "pictures": 0},
}
