"""What the product promises, by behaviour."""
