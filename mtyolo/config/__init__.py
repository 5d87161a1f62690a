"""What people write: schemas, YAML reading that keeps line numbers, and errors that name the nearest right word."""
