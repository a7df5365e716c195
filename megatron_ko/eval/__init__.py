"""Using a trained model: loading it into one process, and continuing texts."""

# Must come before the first import of megatron-core, which it prepares and silences.
import megatron_ko.parallel  # noqa: F401
