"""What each trial is doing: one model of state, one table, one live view."""
