"""Networks with weights: finished ones, those from elsewhere, what training starts from, exports."""
