"""Exact arithmetic from a configuration, without building anything: parameters and FLOPs."""
