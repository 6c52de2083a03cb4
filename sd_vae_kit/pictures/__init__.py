"""Picture files, pixels and the parameters text inside them."""
