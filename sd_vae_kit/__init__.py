"""VAE Kit: everything between pixels and latents for Stable Diffusion web UIs."""

__version__ = "0.1.0"
