"""python -m abd_jax.report"""

import sys

from abd_jax.report.command import main

sys.exit(main(sys.argv[1:]))
