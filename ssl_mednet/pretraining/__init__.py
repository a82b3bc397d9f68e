"""Pretraining: a recipe and a corpus in, a backbone artifact out."""
