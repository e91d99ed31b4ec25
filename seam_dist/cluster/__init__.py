"""Ranks and processes: the process group, the launcher, stop signals and the watchdog."""
