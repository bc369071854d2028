"""What `modelmill.tasks` promises."""
