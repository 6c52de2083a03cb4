"""One `Host` per program."""
