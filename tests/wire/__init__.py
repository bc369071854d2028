"""What `modelmill.wire` promises."""
