"""Matchers: from the features of two images to pairs of keypoints."""
