"""What a Slurm job runs besides the ranks: begin, end, requeue. Standard library only."""
