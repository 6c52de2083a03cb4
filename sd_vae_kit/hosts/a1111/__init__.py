"""A1111 and its close relatives (reForge, Forge Classic)."""
