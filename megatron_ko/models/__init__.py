"""Models: megatron-core's, built from the configuration, with weights that do not depend on the parallel layout."""

# Prepares the import of megatron-core, so it must come before the modules of this package. Needs no torch itself.
import megatron_ko.parallel  # noqa: F401
