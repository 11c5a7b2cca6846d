"""What tools/logits.py does: checks of caches, flatness of teachers."""
