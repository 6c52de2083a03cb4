"""A VAE of any layout as a flat list of nodes, read off a module's attributes; no tensor values here."""
