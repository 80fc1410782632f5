"""`angio-ray score` as a Ray job: `ray job submit --working-dir . -- python jobs/score.py s3://bucket/clips --tables ...`."""

import sys

from angio_ray.cli import job, leave

if __name__ == "__main__":
    leave(job(["score", *sys.argv[1:]]))
