"""From the command line to checked trial configs."""
