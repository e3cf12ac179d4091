"""Preference pairs: from any source to NeMo-Aligner's JSONL."""
