"""The stand-alone program: everything that no web UI needs."""
