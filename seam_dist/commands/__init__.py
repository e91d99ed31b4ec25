"""The commands of `seam-dist`, one file each."""
