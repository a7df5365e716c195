"""Signals that stop a run in an orderly way."""
