"""From files to batches: `sources.load_split`, `dataset.Dataset`, `loader.make_loader`."""
