# The workflow is in workflow/. This file lets you run `snakemake` in this folder.
include: "workflow/Snakefile"
