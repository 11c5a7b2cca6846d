"""What a run shows of itself while it trains: figures, dashboards, pictures, traces, its ceiling."""
