"""Unseen speakers: similar speakers, calibration, adapted embeddings."""

MATCHES = ("mean", "std", "mean-std", "prior")
"""Forms of PLDC, see `pldc`."""
METHODS = {"adapted": "adapted", "nearest": "nearest average"}
"""How embeddings of new speakers are made, see `adaptation`, and what reports call them."""
