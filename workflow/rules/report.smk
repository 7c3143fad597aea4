# Comparison of all variants, and the pictures that `snakemake --report report.html` shows.


# Includes all existing results, not only the matrix. Other results are not inputs, because they
# would be built.
rule overview:
    input:
        results=GRAPH.report.matrix_results,
    output:
        table="results/summary.csv",
        page="results/summary.md",
        web_page=report(
            "results/pictures/summary.html",
            caption="../report/summary.rst",
            category="All variants",
            labels={"what": "Table"},
        ),
        latency=report(
            "results/pictures/accuracy_by_latency.svg",
            caption="../report/accuracy_by_latency.rst",
            category="All variants",
            labels={"what": "Accuracy by latency"},
        ),
        macs=report(
            "results/pictures/accuracy_by_macs.svg",
            caption="../report/accuracy_by_macs.rst",
            category="All variants",
            labels={"what": "Accuracy by MACs"},
        ),
        energy=report(
            "results/pictures/energy.svg",
            caption="../report/energy.rst",
            category="All variants",
            labels={"what": "Energy"},
        ),
    log:
        "logs/overview.log",
    params:
        code=GRAPH.code("overview"),
        variants=GRAPH.report.overview_variants,
        tasks=GRAPH.report.overview_tasks,
        beside_the_matrix=GRAPH.report.compared,
        devices=GRAPH.report.devices_stated(),
    shell:
        command("overview")


# DVC draws its own plots from the same tables.
rule draw:
    input:
        result="results/{model}_{method}.json",
        layers="results/plots/{model}_{method}/layers.json",
        times="results/plots/{model}_{method}/times.json",
        curve="results/plots/{model}_{method}/curve.json",
    output:
        ranks_picture=report(
            "results/pictures/{model}_{method}/ranks.svg",
            caption="../report/ranks.rst",
            category="{model}",
            subcategory="{method}",
            labels={"what": "Ranks by layer"},
        ),
        times_pictures=report(
            expand(
                "results/pictures/{{model}}_{{method}}/times_{device}.svg",
                device=PARAMS.matrix.devices,
            ),
            caption="../report/times.rst",
            category="{model}",
            subcategory="{method}",
            labels={"what": "Time by layer"},
        ),
        curve_picture=report(
            "results/pictures/{model}_{method}/curve.svg",
            caption="../report/curve.rst",
            category="{model}",
            subcategory="{method}",
            labels={"what": "Fine-tuning"},
        ),
    log:
        "logs/draw/{model}/{method}.log",
    wildcard_constraints:
        method=GRAPH.names_pattern("methods"),
    params:
        task=GRAPH.task,
        code=GRAPH.code("draw"),
        method=GRAPH.report.stated,
        devices=GRAPH.report.devices_stated(),
    shell:
        command("draw")
