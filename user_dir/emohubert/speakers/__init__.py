"""Unseen speakers: similar speakers, calibration, normalisation, adapted embeddings."""

MATCHES = ("mean", "std", "mean-std", "prior")
"""Forms of PLDC, see `pldc`."""
METHODS = ("adapted", "nearest")
"""How embeddings of new speakers are made, see `adaptation`."""
