"""Read the figures in the documentation's tables and sentences from committed results."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markdown_pages import ROOT, Figures

TITLES = {"vgg16": "VGG-16", "resnet20": "ResNet-20", "resnet56": "ResNet-56"}

# The columns that identify a row, and the expected figures of each row.
Expected = tuple[tuple[str, ...], Figures]
Rows = dict[tuple[str, ...], dict[str, list[float]]]


def document(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def benchmark(name: str) -> Any:
    return document(f"benchmarks/results/{name}.json")


def against_tensorly(name: str, titles: Mapping[str, str]) -> Expected:
    return ("kernel",), {
        (titles.get(kernel, kernel),): {
            "lowrank, s": [comparison["lowrank_cpu_seconds"]],
            "TensorLy, s": [comparison["tensorly_cpu_seconds"]],
            "ratio": [comparison["ratio"]],
            "relative errors": [comparison["lowrank_error"], comparison["tensorly_error"]],
        }
        for kernel, comparison in benchmark(name)["comparisons"].items()
    }


def tucker_speed() -> Expected:
    titles = {"decaying spectrum": "singular values that fall as k^-0.7"}
    return against_tensorly("tucker_speed", titles)


def cp_speed() -> Expected:
    return against_tensorly("cp_speed", {})


def tensorly_functions() -> Expected:
    return ("function", "channels"), {
        (row["function"], str(row["channels"])): {
            "NumPy, us": [row["numpy_us"]],
            "TensorLy, us": [row["tensorly_us"]],
            "ratio": [row["ratio"]],
        }
        for row in benchmark("tensorly_functions")["rows"]
    }


def data_aware() -> Expected:
    return ("network, ranks",), {
        (f"{TITLES[row['network']]}, {row['ranks']}",): {
            "MACs": [row["macs_ratio"]],
            **{
                f"{title}, %": [row[f"{norm}_percent"]]
                for title, norm in (
                    ("weights", "weight"),
                    ("outputs", "activation"),
                    ("sequential", "sequential"),
                )
            },
            "outputs, s": [row["activation_seconds"]],
            "sequential, s": [row["sequential_seconds"]],
        }
        for row in benchmark("data_aware")["rows"]
    }


def budget(network: str) -> Expected:
    rows: Rows = {}
    for row in benchmark("budget")["rows"]:
        if row["network"] == network:
            figures = rows.setdefault((row["rule"],), {"MACs": [row["macs_ratio"]]})
            norm = {"weight": "weights", "activation": "outputs"}[row["norm"]]
            figures[f"{norm}, %"] = [row["top1_percent"]]
            if "finetuned_percent" in row:
                figures["outputs, fine-tuned, %"] = [row["finetuned_percent"]]
    return ("rule",), rows


def budget_prediction() -> Expected:
    rows: Rows = {}
    for row in benchmark("budget")["rows"]:
        if "rank_correlation" in row:
            norm = {"weight": "weights", "activation": "outputs"}[row["norm"]]
            network = rows.setdefault((TITLES[row["network"]],), {})
            network[norm] = [row["rank_correlation"]]
    return ("network",), rows


def budget_cost() -> Expected:
    titles = {"vgg16": "VGG-16", "vgg16_imagenet": "VGG-16 for ImageNet"}
    return ("network",), {
        (titles[row["network"]],): {
            f"{title}, {unit}": [row[step][key]]
            for title, step in (("moments", "calibrate"), ("choice", "select_ranks"))
            for unit, key in (("s", "seconds"), ("GiB", "gib"))
        }
        for row in benchmark("budget_cost")["rows"]
    }


def paper_counts() -> Expected:
    titles = {"alexnet": "AlexNet", "vgg_s": "VGG-S", "googlenet": "GoogLeNet"}
    titles["vgg16_imagenet"] = "VGG-16"
    columns = {"parameters": "parameters", "MACs": "macs"}
    return ("network",), {
        (titles[name],): {
            **{column: [counts[key]] for column, key in columns.items()},
            **{
                f"{column}, over the paper": [counts[f"{key}_over_paper"]]
                for column, key in columns.items()
            },
        }
        for name, counts in benchmark("paper_counts")["networks"].items()
    }


def repeatability() -> Expected:
    return ("measurement",), {
        (str(number),): {
            "faster": [row["speedup"]],
            "95 % interval": [row["speedup_low"], row["speedup_high"]],
        }
        for number, row in enumerate(benchmark("repeatability")["rows"], 1)
    }


def arm64() -> Expected:
    titles = {"original": "VGG-16, original", "compressed": "VGG-16, tucker"}
    return ("network",), {
        (titles[row["model"]],): {"largest difference of an output": [row["largest_difference"]]}
        for row in benchmark("arm64")["rows"]
    }


def int8_types(name: str = "int8") -> Expected:
    rows: Rows = {}
    for row in benchmark(name)["rows"]:
        key = (TITLES[row["model"]], row["types"].removesuffix(" (old default)"))
        rows[key] = {"top-1, %": [row["top1"]]}
        if "speedup" in row:
            rows[key] |= {
                "faster than float32": [row["speedup"]],
                "95 % interval": [row["speedup_low"], row["speedup_high"]],
                "integer kernels": [row["integer_nodes"], row["nodes"]],
                "share of the MACs, %": [100 * row["macs_share"]],
            }
    return ("network", "types"), rows


def onnx_files() -> Expected:
    right = {"orientation": "orientation", "detection": "found_lines", "recognition": "exact_match"}
    same = {"orientation": "same_answers", "detection": "box_agreement"}
    rows: Rows = {}
    for network, record in benchmark("onnx_files")["networks"].items():
        files = {"original": record["original"], "original in int8": record["original_int8"]}
        for target in ("macs", "latency"):
            of_target = record.get(target, {})
            titles = {"activation": target, "activation_int8": f"{target}, in int8"}
            files |= {title: of_target[key] for key, title in titles.items() if key in of_target}
        for file, row in files.items():
            figures = rows.setdefault((network, file), {"MB": [row["size_bytes"] / 1e6]})
            figures["right, %"] = [row[right[network]]]
            figures["as the original, %"] = [row[same.get(network, "same_texts")]]
            if "macs_share" in row:
                figures["MACs, %"] = [100 * row["macs_share"]]
            if "speedup" in row:
                figures["faster than float"] = row["speedup"][:1]
            if "speedup_over_int8" in row:
                figures["faster than int8"] = row["speedup_over_int8"][:1]
    return ("network", "file"), rows


def onnx_fine_tuning() -> Expected:
    titles = {"original": "original", "original_int8": "original in int8"}
    titles |= {"decomposed": "decomposed", "fine_tuned": "fine-tuned"}
    titles |= {"fine_tuned_int8": "fine-tuned, in int8"}
    rows: Rows = {}
    for target, record in benchmark("onnx_fine_tuning").items():
        for key, title in titles.items():
            row = record[key]
            figures = rows.setdefault((target, title), {"lines read, %": [row["exact_match"]]})
            if "size_bytes" in row:
                figures["MB"] = [row["size_bytes"] / 1e6]
                figures["wrong characters, %"] = [row["character_errors"]]
            for name, column in (("speedup", "float"), ("speedup_over_control", "int8")):
                if name in row:
                    figures[f"faster than {column}"] = row[name][:1]
        rows[target, "decomposed"]["MACs, %"] = [100 * record["macs_share"]]
    return ("target", "network"), rows


def imagenet(network: str) -> Expected:
    record = benchmark(network)
    files = {("original", "", "float"): record["original"]}
    files["original", "", "int8"] = record["original_int8"]
    rows: Rows = {}
    for row in record["rows"].values():
        key = (row["method"], target_title(row["target"]))
        files[*key, "float"] = row["float"] | {"macs": row["macs_share"]}
        files[*key, "int8"] = row["int8"]
    for key, row in files.items():
        rows[key] = {
            "MB": [row["megabytes"]],
            "top-1, %": [row["accuracy_percent"]],
            "same class, %": [row["agreement_percent"]],
            "expected drop, points": row["expected_drop"],
        }
        if "macs" in row:
            rows[key]["MACs, %"] = [100 * row["macs"]]
        for column, speedup in zip(("float", "int8"), row["faster"], strict=False):
            rows[key][f"faster than {column}"] = speedup
    return ("method", "target", "precision"), rows


def target_title(target: str) -> str:
    cost, value = target.split("=")
    if cost == "accuracy_drop":
        return f"{value} point"
    return f"{100 * float(value):.0f} % of the {'milliseconds' if cost == 'latency' else 'MACs'}"


def imagenet_cost(network: str) -> Expected:
    record = benchmark(network)
    return ("method", "target"), {
        (row["method"], target_title(row["target"])): {
            "seconds": [row["seconds"]],
            "processor seconds": [row["processor_seconds"]],
            "floor, seconds": [record["floor_seconds"]],
            "above the floor": [row["seconds"] / record["floor_seconds"]],
            "peak memory, GiB": [row["peak_gib"]],
        }
        for row in record["rows"].values()
        if row["measures_layers"]
    }


def latency_model() -> Expected:
    return ("network, precision",), {
        (name,): {
            "original, ms": [row["original_ms"]],
            "compressed, ms": [
                bound(measured for _, measured in row["milliseconds"]) for bound in (min, max)
            ],
            "median error, %": [row["median_error_percent"]],
            "largest error, %": [row["largest_error_percent"]],
        }
        for name, row in benchmark("latency_model").items()
    }


def runtimes() -> Expected:
    return ("file",), {
        (label,): {
            "ONNX Runtime, ms": [latencies["onnxruntime"]],
            "OpenVINO, ms": [latencies["openvino"]],
            "OpenVINO, faster": [latencies["onnxruntime"] / latencies["openvino"]],
        }
        for label, latencies in benchmark("runtimes")["files"].items()
    }


def bias_correction() -> Expected:
    titles = TITLES | {"resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2"}
    return ("network",), {
        (titles[row["network"]],): {
            **{
                f"{bits} bits{title}": [row[f"{key}_{bits}"]]
                for bits in (8, 7)
                for key, title in (("rounded", ""), ("corrected", ", corrected"))
            },
        }
        for row in benchmark("bias_correction")["rows"]
    }


PEERS = {
    "lowrank": "lowrank",
    "torch_pruning_channels": "Torch-Pruning",
    "tensorly_tucker": "TensorLy-Torch",
    "fasterai_decomposition": "FasterAI",
    "nncf_int8": "NNCF",
}


def peers(precision: str) -> Expected:
    """Return the figures of all networks in float or in int8, and of the original."""
    record, rows = benchmark("peers"), {}
    networks = {"as_it_is": "as it is", "statistics": "statistics taken again"}
    networks |= {"performance": "original, performance", "mixed": "original, mixed"}
    original = record["original"] if precision == "float" else record["original_int8"]
    files = {("lowrank", "original"): {precision: original}}
    files |= {(PEERS[row["tool"]], networks[row["network"]]): row for row in record["rows"]}
    for key, row in files.items():
        if precision not in row:
            continue
        measured = row[precision]
        figures = rows[key] = {
            "MB": [measured["megabytes"]],
            "top-1, %": [measured["accuracy_percent"]],
            "same class, %": [measured["agreement_percent"]],
        }
        if "macs_share" in row:
            figures["MACs, %"] = [100 * row["macs_share"]]
        if "processor_seconds" in row:
            figures["processor seconds"] = [row["processor_seconds"]]
        for column, speedup in zip(("float", "int8"), measured["faster"], strict=False):
            figures[f"faster than {column}"] = speedup
    return ("tool", "network"), rows


def training_speed() -> Expected:
    titles = TITLES | {"vgg16, compressed": "VGG-16, compressed"}
    rows = {}
    for network, times in benchmark("training_speed")["milliseconds_per_image"].items():
        before, after = times["float32, contiguous"], times["bfloat16, channels_last"]
        without = times["the same, memory not reused"]
        rows[titles[network],] = {
            "float32, ms": [before],
            "bfloat16, ms": [after],
            "gain": [before / after],
            "without reuse, ms": [without],
            "gain of reuse": [without / after],
        }
    return ("network",), rows


def loading_speed() -> Expected:
    titles = {name: f"lowrank, {name}" for name in ("decoded images stored", "from the files")}
    return ("source",), {
        (titles.get(name, name),): {"images a second": [speed]}
        for name, speed in benchmark("loading_speed")["images_per_second"].items()
    }


def short_finetuning() -> Expected:
    return ("recipe", "precision", "ranks rounded", "start"), {
        (row["name"], row["precision"], row["ranks"], row["start"]): {
            "steps": [row["steps"]],
            "seconds": [row["cpu_seconds"]],
            "validation, %": [row["after"]["validation"]],
            "test, %": [row["after"]["test"]],
        }
        for row in benchmark("short_finetuning")["rows"]
    }


def shipped_checkpoints() -> Expected:
    rows = {}
    for network, title in TITLES.items():
        runs, record = [], document(f"data/checkpoints/{network}.json")
        while record:
            runs.insert(0, record)
            record = record.get("start", {}).get("provenance")
        for number, run in enumerate(runs, 1):
            rows[title, str(number), run["commit"][:7]] = {
                "epochs": [run["recipe"]["epochs"]],
                "minutes": [run["seconds"] / 60],
            }
    return ("checkpoint", "run", "commit"), rows


def study(name: str) -> Expected:
    fields = {"%": "test_percent", "faster": "speedup"}
    fields |= {"fewer MACs": "macs_ratio", "fewer parameters": "parameters_ratio"}
    rows: Rows = {}
    for record in document(f"results/studies/{name}.json"):
        row = rows.setdefault((record["variant"],), {})
        row |= {
            f"{TITLES[record['model']]}, {column}": [record[key]] for column, key in fields.items()
        }
    return ("variant",), rows


BENCHMARKS, STUDIES = "docs/benchmarks.md", "docs/studies.md"
# Page, heading, number of the table under it, its source file, and a function that reads the file.
TABLES: list[tuple[str, str, int, str, Callable[[], Expected]]] = [
    (BENCHMARKS, "speed-of-tucker-2", 0, "benchmarks/results/tucker_speed.json", tucker_speed),
    (BENCHMARKS, "speed-of-cp", 0, "benchmarks/results/cp_speed.json", cp_speed),
    (
        *(BENCHMARKS, "functions-of-tensorly", 0),
        *("benchmarks/results/tensorly_functions.json", tensorly_functions),
    ),
    (BENCHMARKS, "weights-or-outputs", 0, "benchmarks/results/data_aware.json", data_aware),
    *(
        (BENCHMARKS, "ranks-from-a-target", number, "benchmarks/results/budget.json", read)
        for number, read in enumerate(
            (lambda: budget("vgg16"), lambda: budget("resnet20"), budget_prediction)
        )
    ),
    (BENCHMARKS, "cost-of-a-target", 0, "benchmarks/results/budget_cost.json", budget_cost),
    (
        *(BENCHMARKS, "counts-of-the-papers-networks", 0),
        *("benchmarks/results/paper_counts.json", paper_counts),
    ),
    (BENCHMARKS, "repeatability", 0, "benchmarks/results/repeatability.json", repeatability),
    (BENCHMARKS, "arm64", 0, "benchmarks/results/arm64.json", arm64),
    (BENCHMARKS, "int8-types", 0, "benchmarks/results/int8.json", int8_types),
    (
        *(BENCHMARKS, "int8-types", 1, "benchmarks/results/int8_older_cpu.json"),
        lambda: int8_types("int8_older_cpu"),
    ),
    (BENCHMARKS, "onnx-files-of-others", 0, "benchmarks/results/onnx_files.json", onnx_files),
    (
        *(BENCHMARKS, "an-onnx-file-trained-without-labels", 0),
        *("benchmarks/results/onnx_fine_tuning.json", onnx_fine_tuning),
    ),
    *(
        (
            *(BENCHMARKS, heading, number, f"benchmarks/results/{network}.json"),
            lambda read=read, network=network: read(network),
        )
        for heading, network in {
            "resnet-50-at-224-pixels": "resnet50",
            "mobilenetv2-at-224-pixels": "mobilenet_v2",
        }.items()
        for number, read in enumerate((imagenet, imagenet_cost))
    ),
    *(
        (
            *(BENCHMARKS, "against-other-tools", number, "benchmarks/results/peers.json"),
            lambda precision=precision: peers(precision),
        )
        for number, precision in enumerate(("float", "int8"))
    ),
    (
        *(BENCHMARKS, "the-latency-model", 0),
        *("benchmarks/results/latency_model.json", latency_model),
    ),
    (BENCHMARKS, "openvino", 0, "benchmarks/results/runtimes.json", runtimes),
    (
        *(BENCHMARKS, "biases-in-int8", 0),
        *("benchmarks/results/bias_correction.json", bias_correction),
    ),
    (BENCHMARKS, "training-speed", 0, "benchmarks/results/training_speed.json", training_speed),
    (BENCHMARKS, "loading-speed", 0, "benchmarks/results/loading_speed.json", loading_speed),
    (
        *(BENCHMARKS, "short-fine-tuning", 0),
        *("benchmarks/results/short_finetuning.json", short_finetuning),
    ),
    (
        *("docs/own-network.md", "the-shipped-checkpoints", 0),
        *("data/checkpoints/*.json", shipped_checkpoints),
    ),
    *(
        (STUDIES, heading, 0, f"results/studies/{name}.json", lambda name=name: study(name))
        for heading, name in {
            "decompositions": "decompositions",
            "budgets-of-fine-tuning": "budgets",
            "schedules": "schedules",
            "labels": "labels",
            "a-long-recipe": "records",
            "a-target-against-the-papers-ranks": "compare",
            "a-target-of-milliseconds": "milliseconds",
        }.items()
    ),
]


def _in_pointwise() -> list[float]:
    rows = document("results/plots/vgg16_tucker/times.json")
    spent, pointwise = (
        sum(row[f"{name}_ms"] for row in rows) for name in ("compressed", "pointwise")
    )
    return [100 * pointwise / spent]


def _direct_and_by_float() -> list[float]:
    result = document("results/vgg16_cpsvd.json")
    compressed, control = (
        network["latency_ms"]["local"] for network in (result["int8"], result["control"]["int8"])
    )
    speedups = [network["speedup"] for network in (compressed, control)]
    return [*speedups, speedups[0] / speedups[1], compressed["speedup_over_control"]]


def _recipes(*names: str) -> list[float]:
    percents = {row["name"]: row["after"]["test"] for row in benchmark("short_finetuning")["rows"]}
    return [percents[name] for name in names]


def _before_finetuning(name: str, *variants: tuple[str, str]) -> list[float]:
    percents = {
        (record["model"], record["variant"]): record["decomposed_validation_percent"]
        for record in document(f"results/studies/{name}.json")
    }
    return [percents[variant] for variant in variants]


def _data_aware(ranks: str) -> list[float]:
    (row,) = (row for row in benchmark("data_aware")["rows"] if row["ranks"] == ranks)
    return [row["sequential_percent"], row["activation_percent"]]


def _loading() -> list[float]:
    steps = benchmark("loading_speed")["resnet20_milliseconds_per_step"]
    return [steps["ahead"], steps["when asked for"]]


def _imagenet() -> list[float]:
    record = benchmark("imagenet_vgg16")["whole"]
    return [record["seconds"], record["peak_gib"]]


def _covered() -> list[float]:
    records = benchmark("coverage")["architectures"].values()
    return [sum(not record["failure"] for record in records)]


# Page, a sentence with the format of each figure, and a function that returns the figures.
SENTENCES: list[tuple[str, str, Callable[[], Sequence[float]]]] = [
    ("README.md", "the {:.0f} classifiers of torchvision", _covered),
    ("docs/own-network.md", "All {:.0f} pass", _covered),
    ("docs/measurement.md", "{:.0f} % of the compressed network's time", _in_pointwise),
    (
        "docs/measurement.md",
        "it is {:.2f} times and the control {:.2f} times faster than float32, a quotient of "
        "{:.2f}, but in alternating runs of the two, `cpsvd` has {:.2f} times the speed of the "
        "control",
        _direct_and_by_float,
    ),
    (
        "docs/methods.md",
        "{:.2f} % with feature maps and at {:.2f} % without",
        lambda: _recipes("maps_700", "outputs_mirrored_700"),
    ),
    (
        "docs/methods.md",
        "keeps {:.2f} % rather than {:.2f} %",
        lambda: _data_aware("0.4 of the channels"),
    ),
    (
        *(BENCHMARKS, "The largest speed-up is {:.2f} times the smallest"),
        lambda: [benchmark("repeatability")["spread"]],
    ),
    (BENCHMARKS, "{:.1f} ms if batches are made ahead, {:.1f} ms if", _loading),
    (BENCHMARKS, "all 16 layers of VGG-16 take {:.0f} s and {:.1f} GiB", _imagenet),
    (
        *(STUDIES, "All start from {:.2f} % (validation)"),
        lambda: _before_finetuning("labels", ("vgg16", "both")),
    ),
    (
        *(STUDIES, "{:.2f} and {:.2f} % (VGG-16), {:.2f} and {:.2f} % (ResNet-20)"),
        lambda: _before_finetuning(
            "compare",
            *((model, variant) for model in ("vgg16", "resnet20") for variant in ("kim", "budget")),
        ),
    ),
]
