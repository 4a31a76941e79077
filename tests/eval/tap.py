# SPDX-License-Identifier: MIT
"""Lines of TAP for tests in Python: each function whose name begins with test_."""
import traceback


class Skip(Exception):
    """Raised by a test that cannot run here; the text says why."""


def run(modules):
    """Run the tests of modules, in order; the number of those that failed."""
    tests = [getattr(m, name) for m in modules for name in vars(m) if name.startswith("test_")]
    print(f"TAP version 13\n1..{len(tests)}", flush=True)
    failed = 0
    for i, test in enumerate(tests, 1):
        name = test.__name__.removeprefix("test_")
        try:
            test()
            print(f"ok {i} - {name}", flush=True)
        except Skip as e:
            print(f"ok {i} - {name} # SKIP {e}", flush=True)
        except Exception:       # whatever a test raises is its failure
            failed += 1
            print(f"not ok {i} - {name}", flush=True)
            for line in traceback.format_exc().splitlines():
                print(f"# {line}", flush=True)
    return failed


def refuses(text, call, *args, **kwargs):
    """call(...) raises a ValueError or OSError whose text has the given one."""
    try:
        call(*args, **kwargs)
    except (ValueError, OSError) as e:
        if text not in str(e):
            raise AssertionError(f"said {e!r}, not {text!r}") from e
        return
    raise AssertionError(f"not refused: {text}")
