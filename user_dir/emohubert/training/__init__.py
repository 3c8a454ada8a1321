"""Patches to fairseq, processes of a training, learning curves."""
