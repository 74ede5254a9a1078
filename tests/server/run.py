"""Runs the tests of this folder against a model's bundle: run.py MODEL.gguf FOLDER [NAME...]"""

import os
import sys
import unittest
from pathlib import Path

import harness


class Result(unittest.TextTestResult):
    """Counts the tests that passed, too."""

    passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def chosen(suite, names):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from chosen(test, names)
        elif not names or any(name in test.id() for name in names):
            yield test


def main(model, folder, *names):
    # A client in a proxied network would send them elsewhere.
    os.environ['no_proxy'] = os.environ['NO_PROXY'] = '127.0.0.1,localhost'
    harness.prepare(Path(model), Path(folder))
    everything = unittest.defaultTestLoader.discover(str(Path(__file__).parent))
    runner = unittest.TextTestRunner(sys.stdout, resultclass=Result, verbosity=2)
    result = runner.run(unittest.TestSuite(chosen(everything, names)))
    # Whatever did not pass; a class that could not be set up counts once.
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    word = 'FAILED' if failed else 'ok'
    print(f'test result: {word}. {result.passed} passed; {failed} failed;')
    sys.exit(bool(failed or not result.passed))


main(*sys.argv[1:])
