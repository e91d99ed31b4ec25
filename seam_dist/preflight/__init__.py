"""Everything that can be known to be wrong before the first stage starts, from settings, files and the machine.

`check_run` looks at all stages that were asked for and returns all findings at once, in seconds: no image is decoded.
The stages still check what they meet; where both look at the same thing they call the same function.
"""
