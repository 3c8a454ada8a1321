"""Datasets: speech with frame labels (pretraining) and with utterance labels (fine-tuning)."""
