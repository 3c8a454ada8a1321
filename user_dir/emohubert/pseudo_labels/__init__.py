"""Frame-level pseudo-labels: features, k-means, label files, acoustic pieces, and what the labels say."""
