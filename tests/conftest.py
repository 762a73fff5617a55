"""Settings of every test, made before torch or ray are imported, and what many tests share."""

import os
import shutil
import tempfile

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_TOKEN", "a-token-of-the-tests-only-0123456789")
os.environ.pop("RAY_ADDRESS", None)
# Paths of Ray's sockets must be short.
_RAY_FOLDER = tempfile.mkdtemp(prefix="ray", dir="/tmp")
os.environ.setdefault("RAY_TMPDIR", _RAY_FOLDER)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Laws are checked on loaded machines too, where any single example may take long.
# In CI a commit gets the same verdict each time; at the desk new examples are looked for.
settings.register_profile("unhurried", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("unhurried")


def pytest_unconfigure():
    """Removes what the Rays of the tests have left."""
    shutil.rmtree(_RAY_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def local_ray():
    """The one Ray of this process, as a command starts it; it ends with the session."""
    from rayeffdet.distributed.cluster import connected

    with connected("local", debug=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray_address(local_ray):
    """Where other processes find that Ray, as they would find a cluster."""
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """COCO sets ``train`` (32 images) and ``val`` (8 images) of drawn shapes, classes 1 to 5."""
    from rayeffdet.data.synthetic import make_synthetic_set

    folder = tmp_path_factory.mktemp("drawn")
    for split, num_images in (("train", 32), ("val", 8)):
        make_synthetic_set(str(folder), num_images=num_images, seed=1, split=split)
    return folder


@pytest.fixture(scope="session")
def shards(drawn, tmp_path_factory):
    """Folder with both drawn sets in shards: ``train`` in three, ``val`` in two."""
    from rayeffdet.data.convert import convert_shard

    folder = tmp_path_factory.mktemp("shards")
    for split, num_shards in (("train", 3), ("val", 2)):
        for shard in range(num_shards):
            convert_shard(
                annotations_file=str(drawn / "annotations" / f"instances_{split}.json"),
                image_dir=str(drawn / split),
                results_dir=str(folder),
                tag=split,
                shard=shard,
                num_shards=num_shards,
                include_masks=False,
            )
    return folder
