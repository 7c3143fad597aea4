# The workflow is in workflow/. With this file, `snakemake` also runs from this folder.
include: "workflow/Snakefile"


# Snakemake forgets the default target of an included file.
workflow.default_target = "all"
