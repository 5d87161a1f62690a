"""From files to batches: `split.load_split`, `dataset.Dataset`, `loader.make_loader`."""
