"""What `modelmill.jobs` promises."""
