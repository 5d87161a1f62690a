"""Label formats: each reads one split into `reading.Reading`."""
