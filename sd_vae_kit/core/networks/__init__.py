"""The networks themselves: modules of our own for every architecture, and the latent spaces they work in."""
