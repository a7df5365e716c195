"""Artefacts on disk and their lineage: checkpoints, native models, lineage records. Needs no torch."""
