"""What `modelmill.cluster` promises beyond the contract."""
