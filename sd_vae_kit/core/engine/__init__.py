"""Runs the modules: the only room that touches activations."""
