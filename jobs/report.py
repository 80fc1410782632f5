"""`angio-ray report` as a Ray job: `ray job submit --working-dir . -- python jobs/report.py --tables s3://bucket/tables ...`."""

import sys

from angio_ray.cli import job, leave

if __name__ == "__main__":
    leave(job(["report", *sys.argv[1:]]))
