"""A factorization and a rank rule of an installed package: tests/plugin."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from plugin_package import install, run_with

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def python(installed, tmp_path):
    """Return a function that runs a program beside a params.yaml with some method."""

    def run(code, method=None, *, check=True):
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        if method is not None:
            document["methods"]["mine"] = method
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        return run_with(installed, sys.executable, "-c", code, folder=tmp_path, check=check)

    return run


SHOW = (
    "from lowrank.config.reading import load_params; params = load_params(); "
    "print(params.methods['mine'].factorize.conv, "
    "params.ranks_of('vgg16', 'mine').model_dump_json(), "
    "params.ranks_of('resnet20', 'mine').select)"
)
FACTORIZE = {"conv": "column_svd"}


def test_they_keep_their_contracts(python):
    python(
        "from lowrank.factorize import get_factorization\n"
        "from lowrank.ranks.rule import RULES\n"
        "from lowrank.testing import check_factorization, check_rank_rule\n"
        "check_factorization(get_factorization('column_svd'))\n"
        "check_rank_rule(RULES.get('share'), {'share': 0.3})\n"
    )


def test_params_yaml_accepts_them_and_merges_their_settings(python):
    ranks = {"select": "share", "share": 0.25, "models": {"resnet20": {"select": "vbmf"}}}
    shown = python(SHOW, {"factorize": FACTORIZE, "ranks": ranks})
    factorization, settings, other = shown.split()
    assert factorization == "column_svd"
    assert json.loads(settings)["share"] == 0.25
    assert other == "vbmf"


@pytest.mark.parametrize(
    ("factorize", "ranks", "expected"),
    [
        (
            FACTORIZE,
            {"select": "vbmf", "share": 0.5},
            "`share` belongs to `select: share`, not to `select: vbmf`, which uses ",
        ),
        (FACTORIZE, {"select": "share", "share": 2}, "`methods.mine.ranks.share` is 2, expected"),
        (FACTORIZE, {"select": "shar"}, "(did you mean 'share'?)."),
        ({"linear": "column_svd"}, {}, "`methods.mine.factorize.linear` is 'column_svd', expected"),
        ({"conv": "column_sv"}, {}, "(did you mean 'column_svd'?)."),
        (
            {"conv": "missing"},
            {},
            "factorization 'missing': the entry point `missing = lowrank_example.no_such_module:"
            "Missing` in the group 'lowrank.factorizations' of the package 'lowrank-example' 1.0 "
            "cannot be imported (ModuleNotFoundError: No module named "
            "'lowrank_example.no_such_module'); expected an instance or a subclass of "
            "`lowrank.factorize.factorization.Factorization`. Correct or update the package, or "
            "uninstall it.",
        ),
        (
            FACTORIZE,
            {"select": "unfinished"},
            "rank rule 'unfinished': the entry point `unfinished = lowrank_example.unfinished_rule:"
            "UnfinishedRule` in the group 'lowrank.rank_rules' of the package 'lowrank-example' "
            "1.0 has settings with `select` for 'share'; expected `select: Literal['unfinished'] = "
            "'unfinished'`. Correct or update the package, or uninstall it.",
        ),
    ],
)
def test_a_mistake_names_the_line_and_the_setting(python, factorize, ranks, expected):
    output = python(SHOW, {"factorize": factorize, "ranks": ranks}, check=False)
    assert "UserError: params.yaml: line " in output
    assert expected in output


def test_the_schema_offers_them(python):
    schema = json.loads(python("import lowrank.config.reading as r; print(r.schema())"))
    factorize = schema["$defs"]["FactorizeSettings"]["properties"]
    assert "column_svd" in factorize["conv"]["anyOf"][0]["enum"]
    assert "column_svd" not in factorize["linear"]["anyOf"][0]["enum"]
    rules = schema["$defs"]["MethodRankSettings"]["oneOf"]
    (share,) = [rule for rule in rules if rule["properties"]["select"]["const"] == "share"]
    assert share["properties"]["share"]["description"] == "Share of each full rank."


def test_a_network_is_compressed_with_them(python):
    code = (
        "import torch, lowrank\n"
        "from torch import nn\n"
        "torch.manual_seed(0)\n"
        "network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3)).eval()\n"
        "compressed = lowrank.compress(\n"
        "    network, (3, 12, 12),\n"
        "    factorize={'first_conv': 'column_svd', 'conv': 'column_svd'},\n"
        "    ranks={'select': 'share', 'share': 0.25, 'negligible': 0},\n"
        ")\n"
        "print([(layer.name, layer.factorization, layer.ranks) for layer in compressed.layers])\n"
    )
    assert "[('0', 'column_svd', (2,)), ('2', 'column_svd', (12,))]" in python(code)
