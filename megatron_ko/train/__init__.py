"""The trainer: one visible loop, its state, its metrics and its checkpoints.

Nothing is imported here, so that the torch-free parts (``schedule``, ``state``, ``retention``) stay quick to import.
"""
