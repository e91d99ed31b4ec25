"""The stages of a run, one file each; they meet on disk and never import each other."""
