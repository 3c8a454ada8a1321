"""Speakers never heard: similar speakers, calibration, adapted embeddings."""
