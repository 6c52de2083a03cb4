"""The HTTP API and the data behind pages; no widget."""
