"""What a run measures, declared once for those who write it and those who read it."""
