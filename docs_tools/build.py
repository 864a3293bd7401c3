"""Build the documentation site into ``site/`` and check it: what ``make docs`` runs. Exit code 1 if anything is
wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from check_site import navigation_problems, site_problems
from cli_reference import write_cli_page
from notebook_page import write_notebook_page

ROOT = Path(__file__).parent.parent


def main() -> int:
    docs = ROOT / "docs"
    write_notebook_page(ROOT / "examples" / "first_look.ipynb", docs)
    write_cli_page(docs)
    problems = navigation_problems(ROOT / "mkdocs.yml")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        problems.append("zensical found problems")
    else:
        problems += site_problems(ROOT / "site")
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
