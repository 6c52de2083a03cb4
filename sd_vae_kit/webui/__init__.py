"""A1111-style web UIs: Script class, callbacks, panel, settings page.  Besides `hosts` the only host code."""
