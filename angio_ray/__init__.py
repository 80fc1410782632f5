"""Batch scoring of coronary angiograms: DICOM XA -> Ray Data -> Delta -> SQL. Imports nothing heavy."""

__version__ = "0.1.0"
