"""The quick checks on 8 fake devices, in one process; a script for test_sharding.py. It prints one JSON object.

Its arguments are a folder for a checkpoint, and the names of the cases of `sharded_runs.py` and `named_runs.py` to run,
those of each joined by commas.
"""

import json
import sys
import warnings


def main(folder, sharded, named):
    # The folder of this file is a path of imports for a script, and is none where pytest looks for doctests.
    import named_runs
    import resharded_runs
    import sharded_runs

    warnings.simplefilter("error")
    found = {
        "sharded": sharded_runs.results(sharded.split(",")),
        "named": named_runs.results(named.split(",")),
        "resumed": resharded_runs.results(folder, [2]),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
