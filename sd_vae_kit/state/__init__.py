"""Files that are kept between runs: how they are written whole, read with care, locked and hashed."""
