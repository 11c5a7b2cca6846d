"""Evaluation: what a network answers, the figures computed from that, and files of predictions."""
