"""Checkpoints: Hugging Face folders to .nemo and back, adapters out."""
