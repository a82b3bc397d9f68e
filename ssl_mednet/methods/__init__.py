"""Objectives, one a file, found through a registry."""

from ssl_mednet.methods.base import METHODS, Batch, Method, MethodConfig, StepOutput, View, register_method

__all__ = ["METHODS", "Batch", "Method", "MethodConfig", "StepOutput", "View", "register_method"]
