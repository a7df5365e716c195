"""Duplicates, exact and near, across all sources; and documents that give an evaluation away."""
