"""Tables and figures of finished runs, one a module."""
