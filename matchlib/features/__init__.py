"""Local features: the type, files, the extraction loop, classical extractors."""
