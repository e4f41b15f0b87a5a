"""The exceptions for a user's mistake."""


class InputError(ValueError):
    """The input is wrong: one sentence with the value, the rule and the remedy. The command line exits with 2."""


class NoDocuments(InputError):
    """The input is well formed and holds nothing."""
