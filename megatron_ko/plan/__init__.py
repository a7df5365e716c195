"""Exact parameter counts and FLOPs from a configuration, without building the model."""
