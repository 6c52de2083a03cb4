"""Everything a user can set, as data, and where it is kept."""
