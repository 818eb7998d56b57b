"""A worker of Ray, by the words with which a raylet runs Ray's own setup_worker.py.

python ray_worker.py DEFAULT_WORKER.PY --NAME=VALUE ...
"""

import runpy
import sys

if __name__ == "__main__":
    of_setup = ("--language=", "--serialized-runtime-env-context=")
    sys.argv = [word for word in sys.argv[1:] if not word.startswith(of_setup)]
    runpy.run_path(sys.argv[0], run_name="__main__")
