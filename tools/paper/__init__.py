"""What tools/reproduce.py does: plan, jobs, timing, outcomes, tables, and one call from its options to its table."""
