"""Trained models for other programs: Hugging Face folders and ONNX files."""
