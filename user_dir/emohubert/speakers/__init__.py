"""Unseen speakers: similar speakers, calibration, adapted embeddings."""
