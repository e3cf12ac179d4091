"""Checks that find, before a submission, what would fail on the cluster; and the `doctor`."""
