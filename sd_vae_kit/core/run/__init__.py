"""Decides what to try next: plan, out-of-memory retries, precision; reports what was done."""
