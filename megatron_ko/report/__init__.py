"""Reports of a run, from its metric store: one page, key figures, plots."""
