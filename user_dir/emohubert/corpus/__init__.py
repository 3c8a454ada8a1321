"""Audio, manifest directories and frame labels: reading, building, checking, packing."""
