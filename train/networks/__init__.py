"""Networks with weights: finished ones, files from elsewhere, initial weights, exports."""
