"""VAE files on disk and what is done with them: library, catalogue, choice, rules, guard, swap, install, gallery."""
