"""What `modelmill.serve` promises."""
