"""What runs in a Slurm job beside the ranks: begin, end, requeue. Standard library only."""
