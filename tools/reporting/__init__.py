"""Tables and figures of finished runs, one per module."""
