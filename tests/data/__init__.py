"""What `modelmill.data` promises."""
