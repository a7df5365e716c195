"""The trainer: one visible loop, its state, its metrics and its checkpoints.

Nothing heavy is imported here, so that the torch-free parts (``schedule``, ``state``, ``retention``) stay quick.
"""

# Before the first import of megatron-core, which this prepares and keeps quiet.
import megatron_ko.parallel  # noqa: F401
