"""Image files: decoding, transforms, cache."""
