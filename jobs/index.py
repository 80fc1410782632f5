"""`angio-ray index` as a Ray job: header facts of every object into `clips`."""

import sys

from angio_ray.cli import job, leave

if __name__ == "__main__":
    leave(job(["index", *sys.argv[1:]]))
