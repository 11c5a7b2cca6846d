"""Evaluation: counts of right answers, and the accuracies computed from them."""
