"""Conversions between native checkpoints and Hugging Face folders: a table for each family, a proof of every result."""

# Before the first import of megatron-core, which this prepares and keeps quiet.
import megatron_ko.parallel  # noqa: F401
