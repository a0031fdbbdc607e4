"""Benchmark protocols: from files to figures and tables. No module here knows a method."""
