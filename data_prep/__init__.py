"""What a trial needs before it can start: preference pairs as NeMo JSONL, and base models as .nemo files."""
