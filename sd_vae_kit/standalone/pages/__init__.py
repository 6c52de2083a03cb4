"""The pages of the stand-alone app, from plain data."""
