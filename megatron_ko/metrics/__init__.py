"""The quantities that a run measures, declared once for writers and readers."""
