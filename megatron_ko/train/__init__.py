"""The trainer: one visible loop, its state, its metrics and its checkpoints.

Nothing heavy is imported here, so that the torch-free parts (``schedule``, ``state``, ``retention``) stay quick.
"""

# Must come before the first import of megatron-core, which it prepares and silences.
import megatron_ko.parallel  # noqa: F401
