"""A1111-style web UIs: Script class, callbacks, panel, settings page.  Besides `adapters` the only host code."""
