"""From files to batches: `reading.load_split`, `dataset.Dataset`, `loader.make_loader`."""
