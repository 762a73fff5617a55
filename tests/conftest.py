"""Settings of every test, made before torch or ray are imported."""

import os
import tempfile

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_TOKEN", "a-token-of-the-tests-only-0123456789")
os.environ.pop("RAY_ADDRESS", None)
# Paths of Ray's sockets must be short.
os.environ.setdefault("RAY_TMPDIR", tempfile.mkdtemp(prefix="ray", dir="/tmp"))

from hypothesis import settings

# Laws are checked on loaded machines too, where any single example may take long.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
