"""What a run leaves on disk: stages, locks, and the files of CAMs, labels and the authors."""
