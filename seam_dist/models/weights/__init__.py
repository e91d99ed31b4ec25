"""Weight files: reading them, and finding the trained network of a run."""
