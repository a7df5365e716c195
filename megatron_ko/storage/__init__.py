"""Files that others see only when they are complete: written whole, locked, renamed together."""
