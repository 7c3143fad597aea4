"""Options of steps, and the commands of the rules that pass them."""

import re
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from lowrank.config.network_source import NetworkSource
from lowrank.config.schedule import ScheduleSettings
from lowrank.graph.step_names import STEPS
from lowrank.steps.common import Step
from lowrank.steps.options import (
    Json,
    command,
    input_path,
    input_paths,
    kept_path,
    network_option,
    output_path,
    parameter,
    wildcard,
)

RULES = Path(__file__).parents[2] / "workflow/rules"


def values_of(*options, arguments=()):
    """Return the values that a step with these options receives, and the result of its run."""
    received = {}

    def step(**values):
        received.update(values)

    for option in options:
        step = option(step)
    done = CliRunner().invoke(click.command(cls=Step, name="demo")(step), arguments)
    return received, done


def test_paths_and_parameters():
    values, done = values_of(
        input_path("state", "A network."),
        input_path("aim", "A share.", optional=True),
        input_paths("plans", "Plans."),
        output_path("model", "A file."),
        parameter("images", "How many.", int),
        wildcard("round", "From 1.", int, variable="round_number"),
        arguments=("--state=a b", "--aim=", "--plans=x  y", "--model=m", "--images=3", "--round=2"),
    )
    assert done.exit_code == 0, done.output
    assert values == {
        "state": Path("a b"),
        "aim": None,
        "plans": [Path("x"), Path("y")],
        "model": Path("m"),
        "images": 3,
        "round_number": 2,
    }


@pytest.mark.parametrize("missing", ["--state", "--images"])
def test_a_missing_option_is_an_error(missing):
    arguments = {"--state": "a", "--images": "3"}
    del arguments[missing]
    _, done = values_of(
        input_path("state", "A network."),
        parameter("images", "How many.", int),
        arguments=[f"{name}={value}" for name, value in arguments.items()],
    )
    assert done.exit_code == 2
    assert f"Missing option '{missing}'" in done.stderr


def test_a_network_is_a_name_or_a_document():
    for text in ("vgg16", '{"network": "vgg16"}'):
        values, _ = values_of(network_option, arguments=[f"--network={text}"])
        assert values["network"] == NetworkSource(network="vgg16")


def test_documents_are_checked():
    schedule = parameter("schedule", "A schedule.", Json(ScheduleSettings))
    values, _ = values_of(schedule, arguments=['--schedule={"kind": "iterative", "group": 2}'])
    assert values["schedule"] == ScheduleSettings(kind="iterative", group=2)
    for text, message in (
        ("{kind: iterative}", "not a JSON document"),
        ('{"kind": "iterative", "groups": 2}', "groups"),
    ):
        _, done = values_of(schedule, arguments=[f"--schedule={text}"])
        assert done.exit_code == 2
        assert message in done.stderr


def test_the_command_of_a_rule_follows_from_the_options():
    assert command("next_trial") == (
        "lowrank next_trial --log={log:q} --label='next_trial {wildcards}'"
        " --settings={params.settings:q} --table={input.table:q} --layers={params.layers:q}"
        " --alternatives={params.alternatives:q} --quantize={params.quantize:q}"
        " --latencies='{input.latencies}' --trials='{input.trials}' --output={output.output:q}"
    )
    assert " --resume=build/resume/{wildcards.model}/" in command("finetune")
    # Caches stay on the machine. A folder of other rules' outputs is where their copies are.
    assert " --resume=sub/build/resume/" in command("finetune", "sub/", "copies/sub/")
    assert " --results=results " in command("overview")
    assert " --results=sub/results " in command("overview", "sub/")
    assert " --results=copies/sub/results " in command("overview", "sub/", "copies/sub/")
    assert kept_path("cache", "build/{wildcards.device}.json", "Times.")


def rules() -> dict[str, str]:
    """Return the text of every rule, by its name."""
    texts = {}
    for path in sorted(RULES.glob("*.smk")):
        for text in re.split(r"(?m)^(?=(?:use )?rule )", path.read_text())[1:]:
            name = re.match(r"(?:use rule \w+ as|rule) (\w+)", text)[1]
            texts[name] = text
    return texts


@pytest.mark.parametrize("rule", rules())
def test_a_rule_has_the_names_of_the_options_of_its_step(rule):
    """A missing name would end the job. A superfluous name would have no effect."""
    text = rules()[rule]
    if base := re.match(r"use rule (\w+) as", text):
        inherited = rules()[base[1]]
        parts = {"shell": section(inherited, "shell"), "params": section(inherited, "params")}
    else:
        parts = {}
    parts |= {name: section(text, name) or parts.get(name, "") for name in SECTIONS}
    called = re.search(r'command\("(\w+)"\)', parts["shell"])
    if not called:
        assert rule in WITHOUT_STEP
        return
    assert called[1] in STEPS
    for part in ("input", "output", "params"):
        needed = set(re.findall(rf"{{{part}\.(\w+)", command(called[1])))
        named = set(re.findall(r"(?m)^        (\w+)=", parts[part]))
        assert needed <= named, f"{rule}: `{part}` lacks {needed - named}"
        # Exceptions: inputs that only order the jobs, and parameters that only make them stale.
        assert named - needed <= UNUSED.get(rule, set()) | {"code"}, f"{rule}: `{part}`"


# Rules whose outputs are not outputs of a DVC stage.
NOT_IN_DVC = {"study"}


@pytest.mark.parametrize("rule", rules())
def test_the_dvc_profile_lists_all_inputs_as_ancient(rule):
    profile = yaml.safe_load((RULES.parents[1] / "profiles/dvc/config.yaml").read_text())
    listed = dict(line.split("=") for line in profile["consider-ancient"])
    named = re.findall(r"(?m)^        (\w+)=", section(rules()[rule], "input"))
    if rule not in NOT_IN_DVC:
        assert sorted(listed.get(rule, "").split(",")) == sorted(named or [""])


SECTIONS = ("input", "output", "params", "shell")
# `inspect` has the network as an argument. The others run no step.
WITHOUT_STEP = {"inspect", "studies", "unknown_result"}
UNUSED = {
    "select_ranks": {"calibration"},
    "draft_ranks": {"calibration"},
    "profile_draft": {"settings"},
    "decompose": {"calibration"},
    "decompose_round": {"calibration"},
    "dataset": {"files"},
    "splits": {"files"},
    "checkpoint": {"table"},
    "describe_device": {"signature"},
    "summarize": {"first_run"},
    "overview": {"results", "beside_the_matrix", "devices"},
    # Used by the captions in the report.
    "draw": {"devices", "method"},
}


def section(rule: str, name: str) -> str:
    match = re.search(rf"(?ms)^    {name}:\n(.*?)(?=^    \w+:|\Z)", rule)
    return match[1] if match else ""
