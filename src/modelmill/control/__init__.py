"""Control: desired and observed state in the database, and the admin API over it."""
