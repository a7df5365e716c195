"""Tokens to training batches: the dataset of a run, its mixture, and how far it has been read."""
