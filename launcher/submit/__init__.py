"""How a sweep's trials are started: `local` on this machine, each rank through submitit. Imports no torch."""
