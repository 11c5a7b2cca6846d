"""What tools/logits.py does: checks, repair and description of caches, flatness of teachers."""
