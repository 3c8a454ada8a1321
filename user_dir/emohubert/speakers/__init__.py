"""Unseen speakers: similar speakers, calibration, adapted embeddings."""

MATCHES = ("mean", "std", "mean-std", "prior")
"""Forms of PLDC, see `pldc`."""
