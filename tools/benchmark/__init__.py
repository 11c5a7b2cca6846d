"""What tools/bench.py measures, how, and what it says of it."""
