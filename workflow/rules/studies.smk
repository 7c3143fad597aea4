# Comparisons of methods that differ in one choice, on demand: `make study`.


rule study:
    input:
        GRAPH.studies.study_results,
    output:
        records="results/studies/{study}.json",
        table="results/studies/{study}.md",
        picture="results/studies/{study}.svg",
    log:
        "logs/study/{study}.log",
    params:
        code=GRAPH.code("study"),
        settings=lambda wildcards: PARAMS.studies[wildcards.study].model_dump_json(),
        tasks=lambda wildcards: GRAPH.report.tasks_json(PARAMS.studies[wildcards.study].models),
    shell:
        command("study")


rule studies:
    input:
        expand("results/studies/{study}.svg", study=PARAMS.studies),
