"""Everything that can be known to be wrong before the first stage starts, from settings, files and the machine."""
