"""Networks that several methods build on. Importing this package imports no torch."""
