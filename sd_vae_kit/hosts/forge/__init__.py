"""Forge and Forge Neo."""
