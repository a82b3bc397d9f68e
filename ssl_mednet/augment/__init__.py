"""Augmentation on the device: one matrix for all geometry, physics for intensity, a policy a modality."""
