"""Files that become visible only when they are complete: staged, locked, renamed together."""
