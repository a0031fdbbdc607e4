"""Whole jobs as the graph and the command line run them: each function here is one rule of the graph."""
