# SPDX-License-Identifier: MIT
"""All tests of client/python, as TAP."""
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../client/python")]
sys.dont_write_bytecode = True

import small            # noqa: E402
import tap              # noqa: E402
import test_config      # noqa: E402
import test_files       # noqa: E402
import test_hf          # noqa: E402
import test_peers       # noqa: E402
import test_phase       # noqa: E402
import test_refusals    # noqa: E402
import test_report      # noqa: E402
import test_small       # noqa: E402
import test_suite       # noqa: E402
import test_widen       # noqa: E402

try:
    test_small.prepare()
    failed = tap.run([test_files, test_config, test_peers, test_phase, test_small,
                      test_refusals, test_report, test_suite, test_widen,
                      test_hf])
finally:
    shutil.rmtree(small.DIR)
sys.exit(failed > 0)
