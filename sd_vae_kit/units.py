"""Sizes in bytes, named once."""

MIB = 2**20
