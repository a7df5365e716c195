"""Conversions between native checkpoints and Hugging Face folders: one table a family, and proof of what came out."""

# Before the first import of megatron-core, which this prepares and keeps quiet.
import megatron_ko.parallel  # noqa: F401
