"""What the user can mend."""


class UserError(ValueError):
  """A sentence to print without a traceback; the process ends with status 2."""
