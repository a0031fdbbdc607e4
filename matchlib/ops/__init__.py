"""Operators that are worth a kernel of their own; each has a readable PyTorch reference."""
