"""What `modelmill.protocols` promises."""
