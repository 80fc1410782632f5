"""Delta tables of a scoring project: their schemas, the fenced writer of a run, upkeep, and SQL over them.

Imports nothing: `schema` needs pyarrow alone (workers use it), the other modules need deltalake or duckdb.
"""
