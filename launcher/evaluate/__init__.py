"""What the trained policies say, and how it is measured: answers generated from the exported adapters, without NeMo."""
