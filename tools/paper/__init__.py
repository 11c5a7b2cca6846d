"""What tools/reproduce.py does: plan, jobs, timing, outcomes, tables."""
