"""What `modelmill.control` promises."""
