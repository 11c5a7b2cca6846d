"""The work of tools/find_lr.py: a sweep over learning rates, and what it suggests."""
