"""Counting right answers, and what is made of the counts."""
