import copy
import json
from pathlib import Path
from typing import get_args

import pytest
import yaml

from lowrank.config.benchmark import section_of
from lowrank.config.device_kinds import DEVICE_KINDS
from lowrank.config.factorize import FactorizeSettings
from lowrank.config.finetune import FinetuneSettings, RoundSettings
from lowrank.config.reading import load_params, parse_params, schema
from lowrank.errors import UserError
from lowrank.factorize import FACTORIZATIONS
from lowrank.ranks.any_rule import AnyRankSettings
from lowrank.settings.section import Section

ROOT = Path(__file__).parents[2]


@pytest.fixture
def document():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(document, place, value):
    document = copy.deepcopy(document)
    *sections, last = place.split("/")
    parent = document
    for section in sections:
        parent = parent[section]
    parent[last] = value
    return document


def message(document):
    with pytest.raises(UserError) as caught:
        parse_params(document)
    return str(caught.value)


def sections(root=Section):
    for section in root.__subclasses__():
        if section.__module__.startswith("lowrank."):
            yield section
        yield from sections(section)


def holds_a_section(annotation):
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return True
    return any(map(holds_a_section, get_args(annotation)))


def test_committed_file_is_valid():
    params = load_params(ROOT / "params.yaml")
    assert params.checkpoint["vgg16"].dataset == "cifar10"
    assert params.methods["tucker"].factorize.conv == "tucker2"


def test_every_parameter_is_described():
    undescribed = [
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if not field.description and not holds_a_section(field.annotation)
    ]
    assert undescribed == []
    assert [section.__name__ for section in sections() if not section.__doc__] == []


def test_committed_schema_is_current():
    regenerate = (
        'python -c "import lowrank.config.reading as r; '
        "open('workflow/schemas/params.schema.json', 'w').write(r.schema())\""
    )
    committed = (ROOT / "workflow/schemas/params.schema.json").read_text()
    assert committed == schema(), f"the committed schema is out of date; run {regenerate}"


@pytest.mark.parametrize(
    ("place", "value", "name", "suggestion"),
    [
        ("finetune/lerning_rate", 0.1, "finetune.lerning_rate", "learning_rate"),
        ("finetuning", {}, "finetuning", "finetune"),
        ("finetune/augment/flips", True, "finetune.augment.flips", "flip"),
        ("methods/tucker/ranks/weakn", 0.1, "methods.tucker.ranks.weakn", "weaken"),
        ("benchmark/local/repeat", 5, "benchmark.local.repeat", "repeats"),
        ("methods/tucker/finetune/step", 5, "methods.tucker.finetune.step", "steps"),
        ("matrix/models", ["vg16"], "matrix.models", "vgg16"),
        ("checkpoint/vgg16/dataset", "cifar01", "checkpoint.vgg16.dataset", "cifar10"),
    ],
)
def test_misspelled_names_get_a_suggestion(document, place, value, name, suggestion):
    text = message(changed(document, place, value))
    assert f"`{name}`" in text
    assert f"did you mean '{suggestion}'?" in text


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        ("finetune/learning_rate", 0, ["finetune.learning_rate", "is 0", "above 0", "at most 100"]),
        ("finetune/momentum", 1, ["finetune.momentum", "is 1", "at least 0", "below 1"]),
        ("decompose/threads", 0, ["decompose.threads", "at least 1", "at most 1024"]),
        ("finetune/clip_norm", -1.5, ["finetune.clip_norm", "is -1.5", "expected above 0"]),
        ("finetune/steps", -1, ["finetune.steps", "is -1", "expected at least 0"]),
        ("methods/tucker/ranks/weaken", 1.01, ["methods.tucker.ranks.weaken", "at most 1"]),
        ("finetune/augment/pad_pixels", 65, ["finetune.augment.pad_pixels", "at most 64"]),
        ("pretrain/vgg16/batch_size", 0, ["pretrain.vgg16.batch_size", "at least 1"]),
        ("finetune/seed", 2**64, ["finetune.seed", "below 4294967296"]),
        ("finetune/learning_rate", float("nan"), ["finetune.learning_rate", "is nan", "finite"]),
        ("benchmark/local/seconds", float("inf"), ["benchmark.local.seconds", "is inf", "finite"]),
        (
            "finetune/batch_size",
            "many",
            ["finetune.batch_size", "'many'", "a whole number, at least 1"],
        ),
        (
            "checkpoint/a-b",
            {},
            ["checkpoint.a-b", "letters, digits and underscores, starting with a letter"],
        ),
        (
            "matrix/methods",
            [],
            ["matrix.methods", "is [], expected a list of at least 1 value"],
        ),
        (
            "decompose",
            None,
            ["decompose", "is null, expected a mapping of settings: jobs"],
        ),
    ],
)
def test_a_wrong_value_is_reported_with_its_bounds(document, place, value, parts):
    text = message(changed(document, place, value))
    assert f"`{parts[0]}`" in text
    for part in parts[1:]:
        assert part in text


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (
            "checkpoint/vgg16/input_shape",
            5,
            "`checkpoint.vgg16.input_shape` is 5, expected a list.",
        ),
        ("methods/tucker/factorize", 3, "expected a mapping of settings: alternatives, conv"),
        ("matrix/models", ["a-b"], "`matrix.models[0]` is 'a-b', expected a name of letters"),
        (
            "methods/tucker/factorize/linear",
            "cp4",
            "is 'cp4', expected one of 'remove_branch', 'remove_channels', 'remove_channels_svd' "
            "or 'svd'.",
        ),
        ("methods/tucker/finetune", [1], "is [1], expected a mapping, `name: value`."),
        ("finetune/augment/flip", "maybe", "is 'maybe', expected true or false."),
        (
            "methods/cpsvd/schedule/order",
            7,
            "`methods.cpsvd.schedule.order` is 7, expected one of 'network' or 'reverse' "
            "or a list.",
        ),
        (
            "methods/tucker/factorize/exclude",
            [0],
            "exclude[0]` is 0, expected text; put it in quotes: '0'",
        ),
        (
            "methods/tucker/factorize/exclude",
            [False],
            "put yes, no, on, off, true and false in quotes",
        ),
        ("methods/tucker/finetune/models", {"vgg16": None}, "`finetune.models.vgg16` is null"),
        ("methods/tucker/finetune/models", [1], "`finetune.models` is [1]; expected entries by"),
        (
            "dataset/cifar10/outputs",
            {"cat": -1},
            "`dataset.cifar10.outputs.cat` is -1, expected at least 0.",
        ),
        (
            "matrix",
            "vgg16",
            "`matrix` is 'vgg16', expected a mapping of settings: devices, methods",
        ),
        ("finetune/augment/resized_crop", [0.5], "`finetune.augment.resized_crop` has too few"),
    ],
)
def test_errors_avoid_words_of_the_implementation(document, place, value, expected):
    text = message(changed(document, place, value))
    assert expected in text
    for word in ("valid", "tuple", "dictionary", "instance", "Settings", "None", "pattern"):
        assert word not in text


def test_a_device_may_have_several_threads_and_batch_sizes(document):
    several = changed(document, "benchmark/local/threads", [1, 2])
    device = parse_params(several).benchmark["local"]
    assert json.loads(device.to_json())["threads"] == [1, 2]
    for value in ([1, 0], []):
        text = message(changed(document, "benchmark/local/threads", value))
        assert "`benchmark.local.threads" in text
        assert "several" not in text


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"kind": "ssh"}, "`benchmark.board.host` is missing: `kind: ssh` needs it."),
        (
            {"host": "board"},
            "in `benchmark.board`: `host` belongs to `kind: ssh`, not to `kind: local`, which has "
            "no settings of its own.",
        ),
        (
            {"kind": "shh"},
            "`benchmark.board.kind` is 'shh', expected one of 'local', 'slurm' or 'ssh' (did you "
            "mean 'ssh'?).",
        ),
        ({"kind": 5}, "`benchmark.board.kind` is 5, expected one of 'local', 'slurm' or 'ssh'."),
        (
            {"kind": "ssh", "host": "board", "thread": 1},
            "unknown parameter `benchmark.board.thread` (did you mean 'threads'?), expected one of "
            "batch_size, command,",
        ),
        ({"repeats": 0}, "`benchmark.board.repeats` is 0, expected at least 1."),
        (
            {"threads": [1, 2000]},
            "`benchmark.board.threads[1]` is 2000, expected at least 1 and at most 1024.",
        ),
        (
            {"kind": "ssh", "host": "board", "python": "-c"},
            "in `benchmark.board.python`: '-c' is not a usable path",
        ),
        (7, "`benchmark.board` is 7, expected a mapping of settings: batch_size,"),
    ],
)
def test_a_device_has_only_the_settings_of_its_kind(document, device, expected):
    assert expected in message(changed(document, "benchmark/board", device))


def test_a_missing_parameter_is_named(document):
    del document["finetune"]["learning_rate"]
    assert "`finetune.learning_rate` is missing" in message(document)


def test_all_mistakes_are_reported_together(document):
    document = changed(document, "finetune/momentum", 2)
    document = changed(document, "benchmark/local/threads", -1)
    text = message(document)
    assert "`finetune.momentum`" in text
    assert "`benchmark.local.threads`" in text


@pytest.mark.parametrize("kind", ["first_conv", "conv", "pointwise_conv", "linear"])
def test_unknown_factorization(document, kind):
    text = message(changed(document, f"methods/tucker/factorize/{kind}", "tucker9"))
    assert f"`methods.tucker.factorize.{kind}` is 'tucker9'" in text
    assert ("'svd'" if kind in ("pointwise_conv", "linear") else "'tucker2'") in text


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "epochs": 1}])
def test_exactly_one_budget(document, budget):
    del document["finetune"]["steps"]
    document["finetune"] |= budget
    text = message(document)
    assert "`finetune`: give the budget as one of `steps`, `epochs`, `total_steps`; found" in text
    assert ("steps and epochs" if budget else "none") in text


def test_validation_matches_points_of_the_curve(document):
    document["finetune"] |= {"curve_every_steps": 50, "validate_every_steps": 75}
    text = message(document)
    assert "`validate_every_steps` (75)" in text
    assert "`curve_every_steps` (50)" in text


def test_original_is_a_reserved_method_name(document):
    document["methods"]["original"] = document["methods"]["tucker"]
    assert "methods.original" in message(document)


def test_a_method_replaces_entries_of_finetune(document):
    document["methods"]["tucker"]["finetune"] = {"learning_rate": 0.5, "schedule": "linear"}
    params = parse_params(document)
    merged = params.finetune_of("vgg16", "tucker")
    assert (merged.learning_rate, merged.schedule) == (0.5, "linear")
    unchanged = {"learning_rate", "schedule"}
    assert merged.model_dump(exclude=unchanged) == params.finetune.model_dump(exclude=unchanged)


def test_a_method_without_entries_gets_finetune(document):
    params = parse_params(document)
    assert params.finetune_of("vgg16", "tucker") == params.finetune


def test_arrays_are_not_augmented_unless_that_is_set(document):
    document["dataset"]["mine"] = {"kind": "arrays", "train": "x.npy"}
    document["checkpoint"]["vgg16"]["dataset"] = "mine"
    del document["finetune"]["augment"]
    document["finetune"]["distill"]["maps"] = 0
    params = parse_params(document)
    assert not params.finetune_of("vgg16", "tucker").augment.changes
    assert params.finetune_of("resnet20", "tucker").augment.changes
    document["methods"]["tucker"]["finetune"] = {"augment": {"flip": True}}
    assert parse_params(document).finetune_of("vgg16", "tucker").augment.changes


def test_a_method_may_change_the_kind_of_budget(document):
    document["methods"]["tucker"]["finetune"] = {"steps": None, "epochs": 2}
    merged = parse_params(document).finetune_of("vgg16", "tucker")
    assert (merged.steps, merged.epochs) == (None, 2)


def test_entries_of_a_method_are_checked(document):
    text = message(changed(document, "methods/tucker/finetune", {"learning_rate": -1}))
    assert "`methods.tucker.finetune.learning_rate` is -1" in text
    assert "above 0 and at most 100" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [1", "line 1, column 6: not YAML"),
        ("- 1\n- 2\n", "expected a mapping of sections, found a list"),
        ("", "expected a mapping of sections, found nothing"),
        (None, "no such file"),
    ],
)
def test_unreadable_file(tmp_path, content, expected):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"^{path}: {expected}"):
        load_params(path)


def test_a_method_may_give_its_budget_in_epochs(document):
    document["methods"]["tucker"]["finetune"] = {"epochs": 2}
    merged = parse_params(document).finetune_of("vgg16", "tucker")
    assert (merged.steps, merged.epochs) == (None, 2)


def test_a_network_may_differ(document):
    document["methods"]["tucker"] |= {
        "ranks": {"weaken": 0.1, "multiple_of": 8, "models": {"resnet20": {"weaken": 0.6}}},
        "finetune": {"learning_rate": 0.5, "models": {"resnet20": {"epochs": 3}}},
    }
    params = parse_params(document)
    general, special = (params.ranks_of(name, "tucker") for name in ("vgg16", "resnet20"))
    assert (general.weaken, general.multiple_of) == (0.1, 8)
    assert (special.weaken, special.multiple_of) == (0.6, 8)
    general, special = (params.finetune_of(name, "tucker") for name in ("vgg16", "resnet20"))
    assert (general.learning_rate, general.steps) == (0.5, params.finetune.steps)
    assert (special.learning_rate, special.steps, special.epochs) == (0.5, None, 3)


@pytest.mark.parametrize(
    ("section", "entries", "expected"),
    [
        ("ranks", {"weakn": 1}, "unknown parameter `methods.tucker.ranks.models.resnet20.weakn`"),
        ("ranks", {"weaken": 2}, "`methods.tucker.ranks.models.resnet20.weaken` is 2"),
        ("finetune", {"seed": -1}, "`methods.tucker.finetune.models.resnet20.seed` is -1"),
    ],
)
def test_settings_for_one_network_are_checked(document, section, entries, expected):
    place = f"methods/tucker/{section}"
    assert expected in message(changed(document, place, {"models": {"resnet20": entries}}))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ({"select": "budget"}, "`select: budget` needs `target`"),
        ({"target": {"macs": 0.5}}, "`target` belongs to `select: budget`, not to `select: vbmf`"),
        (
            {"select": "budget", "target": {}},
            "give `macs`, `parameters`, `size_bytes` or `latency_ms`",
        ),
        ({"select": "budget", "target": {"macs": 1}}, "`methods.tucker.ranks.target.macs` is 1"),
        ({"select": "budget", "target": {"mac": 0.5}}, "did you mean 'macs'?"),
        (
            {"select": "budget", "target": {"macs": 0.5}, "weaken": 0.5},
            "`weaken` cannot be used with `select: budget`",
        ),
        (
            {"select": "budget", "target": {"macs": 0.5, "accuracy_drop": 1}},
            "`accuracy_drop` cannot be combined with other entries",
        ),
        (
            {
                "select": "budget",
                "target": {"accuracy_drop": 1},
                "search": {"between": [0.3, 0.1]},
            },
            "expected the smaller share first",
        ),
        (
            {"select": "budget", "target": {"accuracy_drop": 1}, "search": {"cost": "time"}},
            "`methods.tucker.ranks.search.cost` is 'time'",
        ),
    ],
)
def test_mistakes_in_a_target_are_reported(document, ranks, expected):
    assert expected in message(changed(document, "methods/tucker/ranks", ranks))


@pytest.mark.parametrize(
    "entries",
    [{"target": {"macs": 0.5}}, {"search": {"trials": 2}}],
)
def test_a_search_applies_to_all_networks(document, entries):
    ranks = {"select": "budget", "target": {"accuracy_drop": 1}, "models": {"resnet20": entries}}
    text = message(changed(document, "methods/tucker/ranks", ranks))
    assert "`methods.tucker.ranks.models.resnet20`: `accuracy_drop` and" in text


def test_the_trials_of_a_search_are_methods(document):
    ranks = {"select": "budget", "target": {"accuracy_drop": 1}, "search": {"trials": 2}}
    document["methods"]["tucker"] |= {"ranks": ranks, "factorize": {"conv": "tucker2"}}
    params = parse_params(document)
    assert "tucker" in params.searching
    assert params.trial_of("tucker") is None
    assert params.trial_of("tucker_trial2") == ("tucker", 2)
    assert params.trial_of("tucker_trial3") is None
    assert "tucker_trial3" not in params.methods
    assert params.methods["tucker_trial1"] == params.methods["tucker"]
    assert params.ranks_of("vgg16", "tucker").devices == ("local",)


def test_alternatives_need_the_budget_rule(document):
    place = "methods/tucker/factorize/alternatives"
    document = changed(document, place, ["spatial_svd"])
    assert "`factorize.alternatives` needs `ranks.select: budget`" in message(document)
    ranks = {"select": "budget", "target": {"macs": 0.5, "parameters": 0.4}}
    params = parse_params(changed(document, "methods/tucker/ranks", ranks))
    target = params.ranks_of("vgg16", "tucker").target
    assert (target.macs, target.parameters) == (0.5, 0.4)


@pytest.mark.parametrize("section", ["ranks", "finetune"])
def test_networks_with_own_settings_must_exist(document, section):
    place = f"methods/tucker/{section}"
    text = message(changed(document, place, {"models": {"resnet2": {}}}))
    assert f"`methods.tucker.{section}.models` names 'resnet2'" in text


@pytest.mark.parametrize(
    ("rounds", "expected"), [(1, [100]), (3, [20, 20, 60]), (4, [13, 13, 14, 60])]
)
def test_a_budget_for_all_rounds_is_divided(document, rounds, expected):
    document["methods"]["tucker"]["finetune"] = {"total_steps": 100, "last_share": 0.6}
    settings = parse_params(document).finetune_of("vgg16", "tucker")
    steps = [settings.of_round(number, rounds).steps for number in range(1, rounds + 1)]
    assert steps == expected


def test_a_budget_for_each_round_is_not_divided(document):
    settings = parse_params(document).finetune_of("vgg16", "tucker")
    assert settings.of_round(2, 3).steps == document["finetune"]["steps"]


@pytest.mark.parametrize("factorize", [{}, {"factorize": None}, {"factorize": {}}])
def test_a_method_may_leave_every_layer_dense(document, factorize):
    document["methods"]["int8"] = {"quantize": "int8", **factorize}
    method = parse_params(document).methods["int8"]
    assert not any(method.factorize.by_kind().values())
    assert method.quantize == "int8"


def test_settings_list_all_factorizations():
    kinds = [
        kind
        for kind in FactorizeSettings.model_json_schema()["properties"].items()
        if kind[0] not in ("norm", "images", "sequential", "alternatives", "include", "exclude")
    ]
    named = {name for _, field in kinds for name in field["anyOf"][0].get("enum", ["svd"])}
    assert named == set(FACTORIZATIONS)


STUDY = {
    "title": "A study",
    "models": ["vgg16"],
    "base": {"factorize": {"conv": "tucker2", "linear": "svd"}, "ranks": {"select": "ratio"}},
    "variants": {
        "cp4": {"factorize": {"conv": "cp4"}},
        "control": {"factorize": None, "finetune": {"steps": 3}},
    },
}


def test_variants_of_a_study_are_methods(document):
    document["studies"] = {"shapes": STUDY}
    params = parse_params(document)
    cp4, control = params.methods["shapes_cp4"], params.methods["shapes_control"]
    assert (cp4.factorize.conv, cp4.factorize.linear, cp4.ranks.select) == ("cp4", "svd", "ratio")
    assert not any(control.factorize.by_kind().values())
    assert params.finetune_of("vgg16", "shapes_control").steps == 3
    assert set(document["methods"]) < set(params.methods)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (
            "studies/shapes/variants/cp4",
            {"factorize": {"conv": "cp5"}},
            "`studies.shapes.variants.cp4.factorize.conv` is 'cp5'",
        ),
        ("studies/shapes/models", ["vgg61"], "`studies.shapes.models` names 'vgg61'"),
        ("studies/shapes/titel", "x", "unknown parameter `studies.shapes.titel`"),
        ("studies/shapes/variants", {}, "`studies.shapes.variants`"),
        ("studies", ["shapes"], "`studies` is ['shapes']"),
    ],
)
def test_mistakes_in_a_study_are_reported(document, place, value, expected):
    document["studies"] = {"shapes": STUDY}
    assert expected in message(changed(document, place, value))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (
            {"select": "vbmf", "energy": 0.3},
            "`energy` belongs to `select: energy`, not to `select: vbmf`, which uses `weaken`",
        ),
        ({"ratio": 4.0}, "`ratio` belongs to `select: ratio` or `select: sensitivity`, not to"),
        ({"select": "ratio", "trial_ratio": 2.0}, "`trial_ratio` belongs to `select: sensitivity`"),
        ({"select": "fixed", "table": {"a": [1]}, "negligible": 0.1}, "`negligible` cannot be"),
        ({"select": "budget", "target": {"macs": 0.5}, "search": {}}, "`search` needs `target: "),
        (
            {"models": {"resnet20": {"select": "energy", "ratio": 2.0}}},
            "in `methods.tucker.ranks.models.resnet20`: `ratio` belongs to",
        ),
    ],
)
def test_settings_of_another_rank_rule_are_rejected(document, ranks, expected):
    assert expected in message(changed(document, "methods/tucker/ranks", ranks))


@pytest.mark.parametrize(
    ("place", "entries", "expected"),
    [
        (
            "methods/tucker/factorize",
            {"conv": "svd", "images": 9},
            "`images` belongs to `norm: act",
        ),
        ("methods/tucker/factorize", {"sequential": True}, "`sequential` belongs to `norm: activ"),
        (
            "methods/tucker/schedule",
            {"kind": "one_shot", "group": 4},
            "`group` belongs to `kind: it",
        ),
        (
            "methods/tucker/schedule",
            {"kind": "hybrid", "stages": 4},
            "`stages` belongs to `kind: mu",
        ),
        (
            "methods/tucker/finetune",
            {"step_factor": 0.5},
            "`step_factor` belongs to `schedule: step`",
        ),
        (
            "methods/tucker/finetune",
            {"optimizer": "adamw", "momentum": 0.5},
            "`momentum` belongs to",
        ),
        ("methods/tucker/finetune", {"last_share": 0.5}, "`last_share` needs `total_steps`"),
        ("quantize", {"percentile": 99.9}, "`percentile` belongs to `calibration: percentile`"),
    ],
)
def test_settings_without_effect_are_rejected(document, place, entries, expected):
    assert expected in message(changed(document, place, entries))


def test_a_network_may_have_another_rank_rule(document):
    document["methods"]["tucker"]["ranks"] = {
        "select": "ratio",
        "ratio": 3.0,
        "weaken": 0.1,
        "models": {
            "resnet20": {"select": "vbmf"},
            "vgg16": {"select": "budget", "target": {"macs": 0.5}},
        },
    }
    params = parse_params(document)
    small, large = (params.ranks_of(name, "tucker") for name in ("resnet20", "vgg16"))
    assert (small.select, small.weaken) == ("vbmf", 0.1)
    assert (large.select, large.weakening, large.target.macs) == ("budget", 0.0, 0.5)


@pytest.mark.parametrize("method", ["tucker", "cpsvd", "macs_budget", "lowrank", "records_record"])
@pytest.mark.parametrize("model", ["vgg16", "resnet20"])
def test_written_settings_can_be_read_again(document, model, method):
    params = parse_params(document)
    ranks, finetune = params.ranks_of(model, method), params.finetune_of(model, method)
    assert AnyRankSettings.model_validate_json(ranks.model_dump_json()) == ranks
    assert FinetuneSettings.model_validate_json(finetune.model_dump_json()) == finetune
    round_ = finetune.of_round(1, 1)
    assert RoundSettings.model_validate_json(round_.model_dump_json()) == round_
    assert ("energy" in ranks.model_dump()) == (ranks.select == "energy")


def test_a_method_inherits_settings_of_finetune(document):
    document["finetune"] |= {
        "distill": {"weight": 0.9, "temperature": 2.0, "images": "augmented"},
        "augment": {"pad_pixels": 2, "flip": False},
    }
    document["methods"]["tucker"]["finetune"] = {
        "distill": {"weight": 0.5},
        "models": {"resnet20": {"distill": {"temperature": 3.0}, "augment": {"pad_pixels": None}}},
    }
    params = parse_params(document)
    general, special = (params.finetune_of(name, "tucker") for name in ("vgg16", "resnet20"))
    distill = general.distill
    assert (distill.weight, distill.temperature, distill.images) == (0.5, 2.0, "augmented")
    distill = special.distill
    assert (distill.weight, distill.temperature, distill.images) == (0.5, 3.0, "augmented")
    assert (general.augment.pad_pixels, special.augment.pad_pixels) == (2, 4)
    assert (general.augment.flip, special.augment.flip) == (False, False)


STILL = {"pad_pixels": 0, "flip": False}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            {"augment": STILL | {"pad_pixels": 2}},
            r"do not match shifted or cropped images\. Set `augment`",
        ),
        ({"augment": STILL | {"cutout_pixels": 2}}, "do not match shifted or cropped images"),
        (
            {"augment": STILL | {"resized_crop": [0.5, 1.0]}},
            "do not match shifted or cropped images",
        ),
        ({"augment": STILL | {"flip": True}}, "Set `teacher_outputs.mirrored: true`, or"),
    ],
)
def test_stored_maps_reject_shifted_images(document, entries, expected):
    document["finetune"] |= {"distill": {"weight": 0.9, "maps": 2.0}, "augment": STILL}
    document["teacher_outputs"] = {"mirrored": False}
    parse_params(copy.deepcopy(document))
    document["methods"]["tucker"]["finetune"] = {"models": {"resnet20": entries}}
    with pytest.raises(UserError, match=expected) as error:
        parse_params(copy.deepcopy(document))
    assert "methods.tucker.finetune" in str(error.value)
    # Without stored maps, every augmentation is accepted.
    for distill in ({"maps": 0.0}, {"weight": 0.0}, {"images": "augmented"}):
        recipe = entries | {"distill": distill}
        document["methods"]["tucker"]["finetune"] = {"models": {"resnet20": recipe}}
        parse_params(copy.deepcopy(document))
    if entries["augment"]["flip"]:
        document["methods"]["tucker"]["finetune"] = {"models": {"resnet20": entries}}
        document["teacher_outputs"] = {"mirrored": True}
        parse_params(document)


# Expected ranks and finetune settings where several levels of params.yaml are merged.
GOLDEN = {
    ("vgg16", "tucker"): ("vbmf", {"weaken": 0.05, "multiple_of": 16}, {"steps": 700}),
    ("resnet20", "tucker"): ("vbmf", {"weaken": 0.7, "multiple_of": 4}, {"steps": 2000}),
    ("resnet20", "cpsvd"): (
        "sensitivity",
        {"ratio": 1.4, "trial_ratio": 8.0},
        {"steps": None, "total_steps": 1400, "last_share": 0.6},
    ),
    ("resnet20", "spatial_svd"): ("ratio", {"ratio": 2.0}, {"steps": 2000}),
    ("resnet20", "latency_budget"): ("budget", {"multiple_of": 8}, {"steps": 700}),
    ("resnet20", "compare_kim"): ("vbmf", {"weaken": 0.7, "multiple_of": 4}, {"steps": 500}),
    ("vgg16", "records_record"): (
        "budget",
        {"multiple_of": 1},
        {"steps": None, "epochs": 10, "learning_rate": 0.01, "average_last": 0.5},
    ),
    ("vgg16", "schedules_control"): ("ratio", {"ratio": 4.0}, {"steps": None, "total_steps": 400}),
}


@pytest.mark.parametrize(("model", "method"), GOLDEN)
def test_merged_settings_of_the_committed_file(document, model, method):
    select, ranks, finetune = GOLDEN[model, method]
    params = parse_params(document)
    settings = params.ranks_of(model, method)
    assert settings.select == select
    assert {name: getattr(settings, name) for name in ranks} == ranks
    settings = params.finetune_of(model, method)
    assert {name: getattr(settings, name) for name in finetune} == finetune
    long = method == "records_record"
    assert (settings.freeze.layers, settings.freeze.after) == (0.0 if long else 0.28, 0.1)
    expected = (0.9, 2.0, 0.0) if long else (1.0, 4.0, 3.0)
    assert (
        settings.distill.weight,
        settings.distill.temperature,
        settings.distill.maps,
    ) == expected


def test_a_variant_replaces_the_budget_and_the_rule_of_its_base(document):
    study = copy.deepcopy(STUDY)
    study["base"] |= {
        "ranks": {"select": "ratio", "ratio": 3.0},
        "finetune": {"total_steps": 90, "last_share": 0.2},
        "schedule": {"kind": "iterative", "group": 4},
        "quantize": "int8",
    }
    study["variants"] = {
        "other": {
            "ranks": {"select": "vbmf"},
            "finetune": {"epochs": 2},
            "schedule": {"kind": "multi_stage", "stages": 2},
        },
        "cleared": {"ranks": None, "finetune": None, "schedule": None, "quantize": None},
    }
    params = parse_params(document | {"studies": {"shapes": study}})
    other, cleared = params.methods["shapes_other"], params.methods["shapes_cleared"]
    assert params.ranks_of("vgg16", "shapes_other").select == "vbmf"
    finetune = params.finetune_of("vgg16", "shapes_other")
    assert (finetune.epochs, finetune.steps, finetune.total_steps) == (2, None, None)
    assert (other.schedule.kind, other.schedule.stages) == ("multi_stage", 2)
    assert cleared.ranks.select == "vbmf"
    assert cleared.schedule.kind == "one_shot"
    assert cleared.quantize is None
    assert params.finetune_of("vgg16", "shapes_cleared") == params.finetune


def test_a_variant_that_searches_has_trials(document):
    study = copy.deepcopy(STUDY)
    search = {"select": "budget", "target": {"accuracy_drop": 1}, "search": {"trials": 2}}
    study["variants"] = {"searched": {"ranks": search}}
    params = parse_params(document | {"studies": {"shapes": study}})
    assert "shapes_searched" in params.searching
    assert params.trial_of("shapes_searched_trial2") == ("shapes_searched", 2)


def test_two_variants_with_one_name_are_rejected(document):
    one, two = (STUDY | {"variants": {name: {}}} for name in ("b_c", "c"))
    text = message(document | {"studies": {"a": one, "a_b": two}})
    assert "`studies.a_b.variants.c` is a method with the name 'a_b_c'" in text
    assert "and so is `studies.a.variants.b_c`" in text


def test_a_method_cannot_shadow_a_variant_or_a_trial(document):
    document["studies"] = {"shapes": STUDY}
    shadowing = changed(document, "methods/shapes_cp4", document["methods"]["tucker"])
    text = message(shadowing)
    assert "`studies.shapes.variants.cp4` is a method with the name 'shapes_cp4'" in text
    assert "and so is `methods.shapes_cp4`" in text
    shadowing = changed(document, "methods/lowrank_trial2", document["methods"]["tucker"])
    text = message(shadowing)
    assert "trial 2 of `methods.lowrank` is a method with the name 'lowrank_trial2'" in text
    assert "and so is `methods.lowrank_trial2`" in text


def test_two_results_with_one_name_are_rejected_with_both_places(document):
    document["checkpoint"]["vgg16_a"] = document["checkpoint"]["vgg16"]
    document["methods"]["a_tucker"] = document["methods"]["tucker"]
    text = message(document)
    assert "two results have the name 'vgg16_a_tucker'" in text
    assert "`checkpoint.vgg16` with `methods.a_tucker`" in text
    assert "`checkpoint.vgg16_a` with `methods.tucker`" in text


@pytest.mark.parametrize("name", ["moments", "latencies", "pretrain", "devices"])
def test_a_network_cannot_have_the_name_of_a_build_folder(document, name):
    document["checkpoint"][name] = document["checkpoint"]["vgg16"]
    assert f"`checkpoint.{name}`: the name '{name}' is reserved" in message(document)


@pytest.mark.parametrize("path", ["", "-rf", "a\nb", "a\x00b", "\x1b[2J"])
@pytest.mark.parametrize(
    "place", ["checkpoint/vgg16/weights", "pretrain/vgg16/start", "dataset/cifar10/search"]
)
def test_unusable_paths_are_rejected(document, place, path):
    assert place.replace("/", ".") in message(changed(document, place, path))


@pytest.mark.parametrize("path", ["my weights.pth", "x' & y.pth", "données/é.pth", "../w.pth"])
def test_unusual_paths_are_accepted(document, path):
    assert (
        parse_params(changed(document, "pretrain/vgg16/start", path)).pretrain["vgg16"].start
        == path
    )


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a;b", "a\nb", "$(a)", ""])
def test_hosts_that_are_options_or_code_are_rejected(document, host):
    section = {"kind": "ssh", "host": host}
    assert "benchmark.board.host" in message(changed(document, "benchmark/board", section))


@pytest.mark.parametrize("host", ["board", "me@10.0.0.7", "ssh://me@board:2222", "[fe80::1%eth0]"])
def test_hosts_are_accepted(document, host):
    section = {"kind": "ssh", "host": host}
    assert (
        parse_params(changed(document, "benchmark/board", section)).benchmark["board"].host == host
    )


def test_the_connection_of_a_device_contains_its_first_runtime_unless_it_is_the_default():
    section = section_of(DEVICE_KINDS.get("local"))
    assert section(threads=2).connection_json() == '{"kind":"local"}'
    options = {"openvino": {"ENABLE_CPU_PINNING": False}}
    device = section(runtime=["openvino", "onnxruntime"], session=options)
    assert device.main_runtime == "openvino"
    assert json.loads(device.connection_json()) == {
        "kind": "local",
        "runtime": "openvino",
        "session": {"ENABLE_CPU_PINNING": False},
    }
