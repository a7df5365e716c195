"""Files that are never half seen: written whole, locked against a second writer, renamed together."""
