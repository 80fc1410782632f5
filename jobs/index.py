"""`angio-ray index` as a Ray job: header facts of every object into `clips`."""

import sys

from angio_ray.cli import job

if __name__ == "__main__":
    sys.exit(job(["index", *sys.argv[1:]]))
