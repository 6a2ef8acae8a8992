"""Errors that are known by their type: most have a message for the user, without a traceback."""


class UserError(ValueError):
  """A sentence to print without a traceback; the process ends with status 2."""


class AnotherRun(UserError):
  """A folder holds a run of other flags or data."""


class NotFinite(UserError):
  """Training went to infinity or to no number: says what did, and where."""


class Abandoned(Exception):
  """Another of the runs in lockstep has failed, and this one ends with it."""
