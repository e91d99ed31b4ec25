"""The archive of one split's labels that the evaluation server of PASCAL VOC takes."""

from __future__ import annotations

import gzip
import io
import re
import tarfile

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.outputs import OutputFolder
from seam_dist.artifacts.stage import MANIFEST, StageError, StageRun
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Manifest
from seam_dist.data.shards import parse_info, read_raw

VOC_SERVER = "voc_server.tar.gz"

_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def check_server_split(cfg: Config) -> None:
    """Raise StageError when infer_seg.voc_server is not one of the splits that are predicted."""
    server, splits = cfg.infer_seg.voc_server, list(cfg.splits_of("infer_seg"))
    if server is not None and server not in splits:
        raise StageError(f"infer_seg.voc_server={server} is not one of infer_seg.splits={splits}: add it there")


def check_server_name(name: str, key: str) -> None:
    """Raise StageError when the server could not know the image `key` by its name in the data set."""
    if not _NAME.fullmatch(name):
        raise StageError(
            f"image {key} is called {name!r} in its data set, no name of PASCAL VOC: unset infer_seg.voc_server"
        )


def pack_for_server(cfg: Config, manifest: Manifest, stage: StageRun) -> None:
    """Write the labels of split cfg.infer_seg.voc_server as the archive that the server takes, if it is not there.

    Members are results/VOC2012/Segmentation/comp6_test_cls/<name of the image>.png. Equal labels give equal bytes.
    Raises StageError when an image of the split has no labels or no name that the server could know, and OutputError
    when a file of the user's has the archive's name.
    """
    split = cfg.infer_seg.voc_server
    path = stage.dir / MANIFEST
    record = read_json(path)
    target = stage.dir / VOC_SERVER
    if split is None or (record.get("voc_server") == split and target.is_file()):
        return
    folder = stage.dir / ("labels_crf" if cfg.infer_seg.crf else "labels")
    with (
        OutputFolder(stage.dir).file(VOC_SERVER) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for shard in manifest.split(split).shards:
            labels = read_label_shard(folder / shard.file)
            for sample in read_raw(cfg.shards_dir / shard.file):
                name = parse_info(sample.members["json"]).source_id
                check_server_name(name, sample.key)
                if sample.key not in labels:
                    raise StageError(
                        f"image {name} of split {split!r} could not be read and has no labels, and the server wants "
                        "all images: fix the image and convert the data set again"
                    )
                member = tarfile.TarInfo(f"{_FOLDER}/{name}.png")
                member.size = len(labels[sample.key])
                tar.addfile(member, io.BytesIO(labels[sample.key]))
    record["outputs"][VOC_SERVER] = target.stat().st_size
    write_json(path, record | {"voc_server": split})
    print(f"infer_seg: {target} is what the PASCAL VOC server takes", flush=True)
