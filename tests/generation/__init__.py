"""What `modelmill.generation` promises."""
