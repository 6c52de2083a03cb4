"""The stand-alone app: everything that no web UI needs."""
