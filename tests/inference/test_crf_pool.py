"""The CRF pool: same results in processes and in place, what is made of them, back pressure, dead processes."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from kit import hide_package

from seam_dist.artifacts.authors_files import read_crf_dict
from seam_dist.config.load import from_tree
from seam_dist.config.schema import CrfConfig
from seam_dist.inference import crf_pool as crf
from seam_dist.inference.crf_pool import (
    CrfPool,
    affinity_labels,
    check_crf,
    crf_workers,
    refine,
    refine_cam,
    refine_labels,
    with_background,
)

EXACT = CrfConfig(impl="torch", num_iters=2)
# Processes that compute the exact sum load torch's compiler first, which takes seconds.
QUICK = CrfConfig(impl="lattice" if importlib.util.find_spec("pydensecrf") else "torch", num_iters=2)


def inputs(seed: int = 0, size: tuple[int, int] = (21, 30), classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.random((classes, *size), dtype=np.float32)


@pytest.fixture(scope="module")
def pool():
    with CrfPool(QUICK, 2) as started:
        yield started


def test_processes_give_what_the_caller_computes(pool):
    with CrfPool(QUICK, 0) as here:
        for seed in range(3):
            image, scores = inputs(seed)
            expected = here.submit(refine, image, scores, 2, 20.0).result()
            assert expected.shape == scores.shape
            np.testing.assert_allclose(expected.sum(axis=0), 1, rtol=1e-5)
            np.testing.assert_array_equal(pool.submit(refine, image, scores, 2, 20.0).result(), expected)
            labels = pool.submit(refine_labels, image, scores, [4], 2, 20.0).result()
            np.testing.assert_array_equal(labels, np.array([0, 4], np.uint8)[expected.argmax(axis=0)])
            cam, same = (
                p.submit(refine_cam, image, scores, (2, 7), (4.0, 24.0), stride=8).result() for p in (pool, here)
            )
            np.testing.assert_array_equal(cam.labels, same.labels)
            np.testing.assert_array_equal(cam.affinity, same.affinity)


def test_settings_reach_the_crf():
    image, scores = inputs()
    results = []
    changes = [{}, {"gaussian_sxy": 1.0}, {"gaussian_compat": 9.0}, {"bilateral_srgb": 90.0}, {"bilateral_compat": 1.0}]
    for change in changes:
        with CrfPool(CrfConfig(impl="torch", **change), 0) as here:
            results.append(here.submit(refine, image, scores, 2, 20.0).result())
    with CrfPool(CrfConfig(impl="torch"), 0) as here:
        results += [
            here.submit(refine, image, scores, 3, 20.0).result(),
            here.submit(refine, image, scores, 2, 5.0).result(),
        ]
    for i, one in enumerate(results):
        assert all(not np.array_equal(one, other) for other in results[:i])


def test_cam_labels_are_those_of_the_two_backgrounds(tmp_path):
    image, cam = inputs()
    files = tmp_path / "la" / "s.npy", tmp_path / "ha" / "s.npy"
    with CrfPool(EXACT, 0) as here:
        both = here.submit(refine_cam, image, cam, (3, 9), (4.0, 24.0), 4, files).result()
        plain = here.submit(refine_cam, image, cam, (3, 9), (4.0, 24.0)).result()
        low, high = (here.submit(refine, image, with_background(cam, a), 2, 80.0).result() for a in (4.0, 24.0))
    np.testing.assert_array_equal(both.labels, np.array([0, 3, 9])[low.argmax(0)])
    np.testing.assert_array_equal(both.affinity, affinity_labels(low, high, (3, 9), 4))
    np.testing.assert_array_equal(plain.labels, both.labels)
    assert plain.affinity is None
    for path, scores in zip(files, (low, high), strict=True):
        maps = read_crf_dict(path)
        assert list(maps) == [0, 3, 9]
        np.testing.assert_array_equal(np.stack(list(maps.values())), scores)


def test_background_is_one_without_classes_and_below_at_confident_ones():
    np.testing.assert_array_equal(with_background(np.zeros((0, 2, 3), np.float32), 4.0), np.ones((1, 2, 3)))
    cam = np.array([[[0.5, -1e-5, 1.2]], [[0.25, -1e-5, 0.0]]], np.float32)
    np.testing.assert_allclose(with_background(cam, 4.0)[0, 0], [0.0625, 1.00004, 0], rtol=1e-6)
    np.testing.assert_array_equal(with_background(cam, 24.0)[1:], cam)


def test_an_image_without_classes_is_background():
    image, _ = inputs()
    with CrfPool(EXACT, 0) as here:
        result = here.submit(refine_cam, image, np.zeros((0, 21, 30), np.float32), (), (4.0, 24.0), stride=8).result()
    assert not result.labels.any()
    assert result.labels.shape == (21, 30)
    assert not result.affinity.any()
    assert result.affinity.shape == (3, 4)


def test_affinity_rule_in_its_order():
    # Columns: la background; class in both; la class and ha background; both background; no score at all.
    low = np.array([[[0.9, 0.2, 0.1, 0.8, 0.0]], [[0.1, 0.8, 0.9, 0.2, 0.0]]], np.float32)
    high = np.array([[[0.4, 0.1, 0.9, 0.7, 0.0]], [[0.6, 0.9, 0.1, 0.3, 0.0]]], np.float32)
    assert affinity_labels(low, high, (6,), 1).tolist() == [[255, 6, 0, 0, 255]]


def test_error_in_a_process_reaches_the_caller(pool):
    image, scores = inputs()
    with pytest.raises(ValueError, match="resize one of them"):
        pool.submit(refine, image[:4], scores, 2, 20.0).result()
    assert pool.submit(refine, image, scores, 1, 20.0).result().shape == scores.shape


def test_submit_waits_while_enough_images_wait(pool):
    image, scores = inputs(size=(60, 60))
    futures = []
    for _ in range(20):
        futures.append(pool.submit(refine, image, scores, 2, 20.0))
        assert sum(not future.done() for future in futures) <= 2 * (1 + crf._WAITING)
    assert all(future.result().shape == scores.shape for future in futures)


def test_a_killed_process_is_an_error_not_a_wait():
    with CrfPool(QUICK, 1) as started:
        image, scores = inputs(size=(40, 40))
        started.submit(refine, image, scores, 1, 20.0).result()
        assert started._executor is not None
        (process,) = started._executor._processes
        psutil.Process(process).send_signal(signal.SIGKILL)
        with pytest.raises(Exception, match=r"terminated abruptly|not usable"):
            started.submit(refine, image, scores, 1, 20.0).result()


_PROGRAM = f"""
import sys
print("program", flush=True)
from seam_dist.config.schema import CrfConfig
from seam_dist.inference.crf_pool import CrfPool, refine
import numpy as np

if __name__ == "__main__":
    with CrfPool(CrfConfig(impl="{QUICK.impl}"), 1) as pool:
        image, scores = np.zeros((8, 8, 3), np.uint8), np.ones((2, 8, 8), np.float32)
        pool.submit(refine, image, scores, 1, 9.0).result()
        import psutil
        print([c.pid for c in psutil.Process().children(recursive=True)], flush=True)
        heavy = "[n for n in __import__('sys').modules if n in ('deepspeed', 'webdataset')]"
        print(pool._executor.submit(eval, heavy).result(), flush=True)
        sys.stdin.readline()
"""


@pytest.mark.slow
def test_processes_do_not_run_the_program_and_end_with_it_when_it_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(_PROGRAM)
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == "program\n"
        children = [int(pid) for pid in program.stdout.readline().strip("[]\n").split(",")]
        assert program.stdout.readline() == "[]\n"  # the second "program" would come before it
    finally:
        program.kill()
        program.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 60
    while any(_is_running(pid) for pid in children):
        assert time.monotonic() < deadline, "CRF processes outlive the killed program"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_missing_lattice_is_named_before_any_work(monkeypatch):
    hide_package(monkeypatch, "pydensecrf")
    with pytest.raises(ValueError, match=r"pip install 'seam-dist\[crf\]'.*crf\.impl=torch.*infer_cam\.crf.*to false"):
        CrfPool(CrfConfig(), 1)
    check_crf(CrfConfig(impl="torch"))


def test_settings_that_the_lattice_would_ignore_are_refused():
    pytest.importorskip("pydensecrf")
    with pytest.raises(ValueError, match=r"crf\.source_stride=2 has no effect on crf\.impl=lattice"):
        check_crf(CrfConfig(source_stride=2))


def test_workers_follow_the_settings():
    assert crf_workers(from_tree({"crf": {"num_workers": 0}, "run": {"threads": 5}})) == 0
    assert crf_workers(from_tree({"run": {"threads": 5, "device": "cpu"}})) == 5


def test_lattice_runs_in_the_pool():
    pytest.importorskip("pydensecrf")
    image, scores = inputs(classes=3)
    with CrfPool(CrfConfig(), 0) as here:
        refined = here.submit(refine, image, scores, 10, 80.0).result()
    assert refined.shape == scores.shape
    np.testing.assert_allclose(refined.sum(axis=0), 1, rtol=1e-4)
