"""`angio-ray train` as a Ray job: `ray job submit --working-dir . -- python jobs/train.py quality --labels ... --clips ...`."""

import sys

from angio_ray.cli import job, leave

if __name__ == "__main__":
    leave(job(["train", *sys.argv[1:]]))
