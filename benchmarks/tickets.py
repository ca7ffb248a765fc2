"""Lottery tickets, supermasks and scratch training on digits: the literature's claims on a 300-100 network and a small
convolutional one, three seeds (the default laboratory of `prunus ticket`).

    python benchmarks/tickets.py [--processes 2]

Compared, at the same masks or the same small network: winning tickets with fresh, reshuffled and random controls at every
sparsity; 27 mask criteria, and what kept and pruned weights start from; masks trained on untrained weights; fine-tuning with
rewinding of the learning rate and training from scratch. About twenty minutes of one core; goes on where it was stopped. Writes
benchmarks/results/tickets.json, with the page beside the parts in the folder of the run.
"""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files
from pathlib import Path

from prunus.files import write_atomically
from prunus.laboratory.tickets import study_tickets
from prunus.ticket_recipe import load_ticket_recipe

RESULT = Path(__file__).parent / "results" / "tickets.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="jobs at once, each with one thread")
    parser.add_argument("--folder", type=Path, default=Path("runs/tickets-digits"), help="where the parts are kept")
    chosen = parser.parse_args()
    with as_file(files("prunus") / "recipes" / "tickets" / "digits.toml") as path:
        recipe = load_ticket_recipe(path)
    result = study_tickets(recipe, chosen.folder, chosen.processes, lambda done, jobs, last: print(f"{done} of {jobs} {last}"))
    write_atomically(RESULT, (chosen.folder / "tickets.json").read_bytes())
    for row in result["claims"]:
        mean, std = (100 * row["difference"][name] for name in ("mean", "std"))
        print(f"{row['verdict']:9}  {mean:+5.1f} ± {std:.1f}  {row['claim']} ({row['where']})")


if __name__ == "__main__":
    main()
