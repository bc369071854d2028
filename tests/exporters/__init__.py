"""What `modelmill.exporters` promises."""
