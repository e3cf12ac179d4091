"""Facts about .nemo files, base models and LoRA names, read without importing NeMo."""
