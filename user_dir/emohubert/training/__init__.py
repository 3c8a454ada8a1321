"""Launching a training, its processes, patches to fairseq, learning curves."""
