"""The claims' files: each is read, all that the literature's list asks for are there, and their commands are commands."""

from __future__ import annotations

import re
import shlex
from itertools import groupby
from pathlib import Path

import pytest

from prunus.claims import Claim, chosen_claims, load_claim, load_claims
from prunus.config import load_recipe
from prunus.errors import RecipeError, UnknownName
from prunus.recipe_text import read_toml

ROOT = Path(__file__).parents[1]
CLAIMS = load_claims(ROOT / "benchmarks" / "claims")
ASKED_FOR = {
    "Taylor's correlation with the oracle": "taylor_oracle_*",
    "normalisation by L2 matters": "l2_normalisation_*",
    "oracle by signed or absolute changes": "oracle_abs_or_loss",
    "AOFP finds sets of little damage": "aofp_low_damage",
    "ResRep converts nearly without loss": "resrep_lossless",
    "ISTA's constants are folded without loss": "ista_constants",
    "a smaller norm is not less information": "smaller_norms",
    "the order of Lasso": "lasso_order",
    "what least squares adds": "least_squares_adds",
    "3C beats its parts": "three_c",
    "smallest, random and largest L1 norms": "magnitude_order",
    "FPGM on replaceable filters": "fpgm_replaceable",
    "Slimming's bimodal scales": "slimming_bimodal",
    "APoZ": "apoz_*",
    "functionality without retraining": "functionality_no_retraining",
    "gradient sparsity without loss": "sparse_gradients_accuracy",
    "transfer by two temperatures": "two_temperature_transfer",
    "lottery tickets": "lottery_*",
    "signs": "signs_*",
    "supermasks": "supermask_trained",
    "scratch-B": "scratch_b_*",
}
RECIPE = re.compile(r"accelerate launch -m prunus run (\w+)")
GOOD = """
claim = "It works."
family = "Magnitudes and medians"
paper = "Somebody 2020"
where = "table 1"
network = "a network"
data = "images"
budget = "half"
command = "python benchmarks/one.py --seeds {seeds} --data {images}"
result = "one.json"
expected = "more"
time = "a minute"
[[comparisons]]
says = "it"
value = ["rows", { row = "a" }, "accuracy"]
at_least = 0.5
"""


@pytest.mark.parametrize("what", ASKED_FOR)
def test_every_claim_asked_for_has_a_file(what: str) -> None:
    assert list((ROOT / "benchmarks" / "claims").glob(f"{ASKED_FOR[what]}.toml")), f"no claim about {what}"


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_commands_are_commands(claim: Claim) -> None:
    """Scripts exist and know the options that they are given; recipes are read with the fields that are set."""
    if claim.command is None:
        return
    if claim.runnable:
        words = shlex.split(claim.command)
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= set(re.findall(r"--[a-z][\w-]*", script)), f"{words[1]} doesn't know all of {given}"
        assert set(claim.needs) <= read_toml(ROOT / "benchmarks" / "data.toml").keys()
        return
    recipe = RECIPE.match(claim.command)
    assert recipe is not None, "a claim for other machines runs a recipe"
    words = shlex.split(claim.command)
    overrides = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    load_recipe(ROOT / "src" / "prunus" / "recipes" / f"{recipe[1]}.toml", overrides)


def test_claims_read_from_one_result_are_made_by_one_command() -> None:
    """Else they would overwrite one another's figures."""
    made = sorted((claim.result, claim.command, claim.seeds, name) for name, claim in CLAIMS.items() if claim.result)
    for result, claims in groupby(made, key=lambda row: row[0]):
        assert len({row[1:3] for row in claims}) == 1, result


def test_a_claim_is_read(tmp_path: Path) -> None:
    path = tmp_path / "works.toml"
    path.write_text(GOOD)
    claim = load_claim(path)
    assert (claim.name, claim.seeds, claim.needs, claim.places) == ("works", 3, ("images",), ("seeds", "images"))
    assert claim.runnable and claim.comparisons[0].value == ("rows", {"row": "a"}, "accuracy")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("at_least = 0.5", "", "comparisons.0: Value error, nothing to hold: give at_least, at_most, above or below"),
        ('result = "one.json"', "", "a result and comparisons go together: give both or neither"),
        ('result = "one.json"', 'result = "../one.json"', "result: String should match pattern"),
        ("python benchmarks/one.py", "make one", "the command of a claim with a result begins with 'python benchmarks/'"),
        ("seeds}", 'seeds}"\nout_of_reach = "far', "a command, or the reason why there is none (out_of_reach)"),
        ('paper = "', 'papers = "', "paper: Field required; papers: Extra inputs are not permitted"),
        ("[[comparisons]]", "[comparisons", "can't be read as TOML"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "wrong.toml"
    assert old in GOOD
    text = GOOD.replace(" --data {images}", "").replace(old, new)
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_claim(path)
    assert "wrong.toml" in str(error.value) and told in str(error.value)


def test_names_are_chosen() -> None:
    assert [claim.name for claim in chosen_claims(CLAIMS, "three_c")] == ["three_c"]
    assert chosen_claims(CLAIMS, "all") == list(CLAIMS.values())
    with pytest.raises(UnknownName, match="unknown claim 'lasso_ordre': did you mean lasso_order"):
        chosen_claims(CLAIMS, "lasso_ordre")
