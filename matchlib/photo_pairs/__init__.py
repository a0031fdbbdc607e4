"""Training pairs from plain photographs: random homographies, photometric changes, labelled interest points."""
