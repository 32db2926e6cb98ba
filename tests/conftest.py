"""Before torch is imported anywhere."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest's workers have the cores already
