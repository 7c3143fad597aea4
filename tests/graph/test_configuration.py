"""Which parts of params.yaml decide a result."""

import yaml
from projects import ROOT

from lowrank.config.reading import parse_params
from lowrank.graph.configuration import configuration_of

DOCUMENT = yaml.safe_load((ROOT / "params.yaml").read_text())
PARAMS = parse_params(DOCUMENT)


def test_only_what_concerns_the_variant():
    found = configuration_of(DOCUMENT, PARAMS, "resnet20", "tucker")
    assert found["matrix"] == {"devices": DOCUMENT["matrix"]["devices"]}
    assert found["methods"] == {"tucker": DOCUMENT["methods"]["tucker"]}
    assert list(found["checkpoint"]) == ["resnet20"]
    assert found["finetune"] == DOCUMENT["finetune"]
    assert found["quantize"] == DOCUMENT["quantize"]
    assert "studies" not in found
    assert "pretrain" not in found


def test_a_variant_of_a_study_is_decided_by_the_study():
    found = configuration_of(DOCUMENT, PARAMS, "vgg16", "labels_both")
    assert found["studies"] == {"labels": DOCUMENT["studies"]["labels"]}
    assert "methods" not in found


def test_a_trial_is_decided_by_the_method_that_searches():
    found = configuration_of(DOCUMENT, PARAMS, "vgg16", "accuracy_budget_trial2")
    assert list(found["methods"]) == ["accuracy_budget"]


def test_weights_that_are_trained_here_are_decided_by_their_recipe():
    checkpoint = DOCUMENT["checkpoint"]["vgg16"] | {"weights": "build/pretrain/vgg16.safetensors"}
    document = DOCUMENT | {"checkpoint": DOCUMENT["checkpoint"] | {"vgg16": checkpoint}}
    found = configuration_of(document, parse_params(document), "vgg16", "tucker")
    assert found["pretrain"] == {"vgg16": DOCUMENT["pretrain"]["vgg16"]}
