"""Using a trained model: loading it into one process, and continuing texts."""

# Before the first import of megatron-core, which this prepares and keeps quiet.
import megatron_ko.parallel  # noqa: F401
