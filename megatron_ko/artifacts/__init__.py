"""What is on disk and has an ancestry: checkpoints, native models, lineage. Needs no torch."""
