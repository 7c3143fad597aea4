"""The parts of params.yaml that determine a result."""

import yaml
from projects import ROOT

from lowrank.config.reading import parse_params
from lowrank.graph.configuration import configuration_of

DOCUMENT = yaml.safe_load((ROOT / "params.yaml").read_text())
PARAMS = parse_params(DOCUMENT)


def test_the_configuration_contains_only_parts_that_affect_the_variant():
    configuration = configuration_of(DOCUMENT, PARAMS, "resnet20", "tucker")
    assert configuration["matrix"] == {"devices": DOCUMENT["matrix"]["devices"]}
    assert configuration["methods"] == {"tucker": DOCUMENT["methods"]["tucker"]}
    assert list(configuration["checkpoint"]) == ["resnet20"]
    assert configuration["finetune"] == DOCUMENT["finetune"]
    assert configuration["quantize"] == DOCUMENT["quantize"]
    assert "studies" not in configuration
    assert "pretrain" not in configuration


def test_the_configuration_of_a_variant_of_a_study_contains_the_study():
    configuration = configuration_of(DOCUMENT, PARAMS, "vgg16", "labels_both")
    assert configuration["studies"] == {"labels": DOCUMENT["studies"]["labels"]}
    assert "methods" not in configuration


def test_the_configuration_of_a_trial_contains_the_searching_method():
    configuration = configuration_of(DOCUMENT, PARAMS, "vgg16", "lowrank_trial2")
    assert list(configuration["methods"]) == ["lowrank"]


def test_the_configuration_contains_the_recipe_of_weights_that_are_trained_here():
    checkpoint = DOCUMENT["checkpoint"]["vgg16"] | {"weights": "build/pretrain/vgg16.safetensors"}
    document = DOCUMENT | {"checkpoint": DOCUMENT["checkpoint"] | {"vgg16": checkpoint}}
    configuration = configuration_of(document, parse_params(document), "vgg16", "tucker")
    assert configuration["pretrain"] == {"vgg16": DOCUMENT["pretrain"]["vgg16"]}
