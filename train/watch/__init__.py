"""What a run reports while it trains: figures, dashboards, pictures, traces, its ceiling."""
