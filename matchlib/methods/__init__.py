"""Methods of local features, one folder each. A method never imports another; adding a folder adds a method."""
