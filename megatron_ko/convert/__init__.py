"""Conversions between native checkpoints and Hugging Face folders: one table a family, and proof of what came out."""
