"""Batch scoring of coronary angiograms: DICOM XA -> Ray Data -> Delta -> SQL. Imports nothing heavy."""

import os

__version__ = "0.1.0"

# How long a thread of torch (GNU's OpenMP) spins before it sleeps; read once, as torch is loaded, so it stands before that, and
# Ray's workers inherit it. By default a team spins some milliseconds at each barrier for a member that waits for its processor:
# beside other work on the same two cores a clip cost 2,617 ms in place of 140, alone 77 and 73 (the contrast net, two threads).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
