"""How long a test waits for something that ends by itself."""

PATIENCE = 600  # seconds: ten times what the longest of them takes; a slow machine is no failure, a hang is
