"""One rank of a job that trains several configurations in turn; run by the tests, once a rank."""

from __future__ import annotations

import sys
from pathlib import Path

from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.load import load_config
from seam_dist.stages import train_seam

if __name__ == "__main__":
    world = None
    for path in sys.argv[1:]:
        config = load_config(Path(path), [], None).config
        world = init_world(config)
        train_seam.run(config)
    if world is not None:
        shutdown(world)
