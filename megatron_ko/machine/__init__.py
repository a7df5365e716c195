"""Which devices there are, and where this process stands among ranks. Needs no torch."""
