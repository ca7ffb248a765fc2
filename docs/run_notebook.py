"""Run docs/notebook/*.ipynb from the first cell to the last and write what they print into them.

``python docs/run_notebook.py`` (or ``make docs-notebook``). The cells are plain Python that prints, so that neither Jupyter nor
its kernel is needed to run them; they run in a temporary folder.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from prunus.files import write_atomically

FOLDER = Path(__file__).parent / "notebook"


def executed(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """The notebook with the outputs of this run; an error of a cell is raised."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"{name}, cell {count}", "exec"), namespace)
            text = printed.getvalue().splitlines(keepends=True)
            outputs = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


def main() -> None:
    """Run all and write them."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            back = os.getcwd()
            os.chdir(folder)
            try:
                done = executed(notebook, path.name)
            finally:
                os.chdir(back)
        write_atomically(path, (json.dumps(done, indent=1, ensure_ascii=False) + "\n").encode())
        print(f"{path.name}: {sum(cell['cell_type'] == 'code' for cell in done['cells'])} cells")


if __name__ == "__main__":
    main()
