"""One module per thing a user can switch on; they see the `Host` protocol, never a host."""
