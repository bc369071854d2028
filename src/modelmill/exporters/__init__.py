"""Trained networks in the forms that engines read: only training needs them."""
