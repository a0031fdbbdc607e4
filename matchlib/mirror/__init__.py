"""The demo world: rendered scenes and photo warps, written and packed exactly as the public datasets are."""
