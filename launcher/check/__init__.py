"""What would fail on the cluster, found before anything is submitted; and the `doctor`."""
