"""The devices of this machine, and this process's position among the ranks. Needs no torch."""
