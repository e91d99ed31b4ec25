"""Data sets: readers, conversion to webdataset shards, the canonical training stream and augmentation.

webdataset must never run code that a shard names. It reads WDS_SECURE once, at its import, so this package sets the
variable before any of its modules can import the library.
"""

import os

os.environ["WDS_SECURE"] = "1"
