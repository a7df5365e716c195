"""What keeps a run alive, or stops it in order: signals."""
