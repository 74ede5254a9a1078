"""The README's commands, as they stand there."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import BIN, PATIENCE, ROOT, bundle


class Readme(unittest.TestCase):
    def test_serve_and_curl(self):
        section = (ROOT / 'README.md').read_text().split('## Serve\n')[1]
        (script,) = re.findall('```bash\n(.*?)```', section.split('\n## ')[0], re.S)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            script = script.replace('8080', str(free.getsockname()[1]))
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(bundle('plain'), Path(folder, 'model.fib'))
            # Jobs have names (%1) where the shell minds them.
            run = subprocess.run(['bash', '-m', '-c', script], cwd=folder, capture_output=True, text=True, timeout=PATIENCE,
                                 env={**os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}'})
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, '"content":"[a-z]{3,9}"')
        self.assertIn('data: [DONE]', run.stdout)
