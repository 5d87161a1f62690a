"""What can go wrong on a person's side; the command line prints these as one sentence and exits with 2."""


class MtyoloError(Exception):
    """Base of all errors that the user can act on. The message gives place, value, expectation and remedy."""


class ConfigError(MtyoloError):
    """A model, plan, data or option that can not be what was meant."""


class DataError(MtyoloError):
    """Images or labels that can not be used."""


class StoreError(MtyoloError):
    """A feature store that is damaged, or belongs to something else."""


class CheckpointError(MtyoloError):
    """Weights that can not be read, or do not fit."""
