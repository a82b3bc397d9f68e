"""Evaluation: artifacts and labelled sets in, results with intervals out."""
