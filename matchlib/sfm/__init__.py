"""Structure from motion on COLMAP's own code, in process: features and matches in, poses, points and statistics out."""
