"""From a sweep to its tables and figures. Wiring only: what runs is in dpzero/experiment/sweeps/NAME.yaml.

snakemake --cores all                                           the sweep `quick`
snakemake --cores all --config sweep=quick-lm methods='[dpzero, mezo]' epsilons='[2]' seeds='[0]'
snakemake --cores all --config sweep=NAME data_dir=FOLDER       task rows from JSON lines (model_dir: weights)
snakemake --cores all --config gpu_share=3                      up to three runs on one GPU, where its memory allows
snakemake --workflow-profile dpzero/experiment/profiles/slurm   on a cluster
snakemake --cores all partial                                 tables and figures of the runs that exist
"""

import json
import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)

from dpzero.errors import UsageError
from dpzero.experiment import cost, gpu, sweep
from dpzero.report import KINDS, figure_files, table_files

PLACES = {"data_dir", "model_dir"}  # the jobs find them in the environment
for place in PLACES & config.keys():
    os.environ[f"DPZERO_{place.upper()}"] = str(Path(config.pop(place)).absolute())
SWEEP = str(config.get("sweep", "quick"))
try:
    KIND = sweep.kind(SWEEP)
    os.environ[gpu.SHARE] = str(config.pop("gpu_share", sweep.gpu_share(SWEEP)))
    gpu.share()
    CELLS = sweep.load(
        SWEEP, **{key: value for key, value in config.items() if key != "sweep"}
    )
except UsageError as error:
    print(f"dpzero: {error}", file=sys.stderr)
    os._exit(2)

RESULTS = f"results/{SWEEP}"
FIGURE_FOLDER = f"figures/{SWEEP}"
CAPTIONS = f"{workflow.basedir}/dpzero/report/captions"
DPZERO = f"{sys.executable} -m dpzero"
RECORDS = [f"{RESULTS}/runs/{run}.json" for run in CELLS]
PLAN = f"{RESULTS}/cells.txt"  # by name: rules.plan.output beside RECORDS takes Snakemake time quadratic in the runs
ASSETS = f"{RESULTS}/assets/{{task}}/{{model}}.json"
LANGUAGE = KIND == "language"  # the kind that needs weights, data and a GPU
TABLES, FIGURES, _ = KINDS[KIND]
TABLE_PATHS = [f"{RESULTS}/tables/{name}" for name in table_files(KIND, CELLS)]
FIGURE_PATHS = [f"{FIGURE_FOLDER}/{name}" for name in figure_files(KIND)]


if workflow.is_main_process:  # here and not in `onstart`, which a dry run leaves out
    missing = [
        cell
        for run, cell in CELLS.items()
        if not Path(f"{RESULTS}/runs/{run}.json").exists()
    ]
    takes = cost.estimate(SWEEP, missing, workflow.resource_settings.cores)
    print(
        f"{SWEEP}: {len(CELLS)} runs, {len(missing)} of them new{takes}",
        file=sys.stderr,
    )


localrules:
    all,
    assets,
    plan,
    tables,
    figures,
    partial,


rule all:
    input:
        RECORDS,  # by name: tables that came with the repository are no reason not to run
        TABLE_PATHS,
        FIGURE_PATHS,


rule assets:
    output:
        ASSETS,
    message:
        "{wildcards.task} for {wildcards.model}: rows and weights, downloaded, verified and tokenized once"
    shell:
        "{DPZERO} assets --sweep {SWEEP} --tasks {wildcards.task} --models {wildcards.model} --out {output}"


rule run:
    input:
        lambda wildcards: (
            [ancient(ASSETS.format(**CELLS[wildcards.run]))] if LANGUAGE else []
        ),
    output:
        f"{RESULTS}/runs/{{run}}.json",
    log:
        f"{RESULTS}/logs/{{run}}.log",
    wildcard_constraints:
        run=r".+/seed-\d+",
    threads: 1
    resources:
        gpu=1 if LANGUAGE else 0,
        mem_mb=4000,  # these two grow with the attempt in the profiles of clusters
        runtime=60,  # minutes
    params:
        cell=lambda wildcards: json.dumps(CELLS[wildcards.run], sort_keys=True),
    message:
        "{wildcards.run}"
    shell:
        "{DPZERO} run --spec {params.cell:q} --out {output} --threads {threads} 2>&1 | tee -a {log}"


rule plan:
    output:
        PLAN,
    params:
        runs=list(CELLS),
    run:
        Path(output[0]).write_text("\n".join(params.runs) + "\n")


rule tables:
    input:
        cells=PLAN,
        records=RECORDS,
    output:
        report(
            [path for path in TABLE_PATHS if path.endswith(".md")],
            category="Tables",
            caption=f"{CAPTIONS}/tables.rst",
        ),
        [path for path in TABLE_PATHS if not path.endswith(".md")],
    message:
        "tables of {SWEEP}"
    shell:
        "{DPZERO} tables --sweep {SWEEP} --cells {input.cells} --records {RESULTS}/runs --out {RESULTS}/tables"


rule figures:
    input:
        cells=PLAN,
        records=RECORDS,
    output:
        [
            report(
                f"{FIGURE_FOLDER}/{name}.png",
                category="Figures",
                caption=f"{CAPTIONS}/{name}.rst",
            )
            for name in FIGURES
        ],
        [path for path in FIGURE_PATHS if path.endswith(".pdf")],
    message:
        "figures of {SWEEP}"
    shell:
        "{DPZERO} figures --sweep {SWEEP} --cells {input.cells} --records {RESULTS}/runs --out {FIGURE_FOLDER}"


rule partial:
    input:
        cells=PLAN,
    message:
        "tables and figures of the runs that exist"
    shell:
        "{DPZERO} tables --sweep {SWEEP} --cells {input.cells} --records {RESULTS}/runs --out {RESULTS}/tables && "
        "{DPZERO} figures --sweep {SWEEP} --cells {input.cells} --records {RESULTS}/runs --out {FIGURE_FOLDER}"


onstart:
    workflow.scheduler.keepgoing = True  # what fails stops nothing but what needs it


onsuccess:
    table = Path(f"{RESULTS}/tables/{TABLES[0]}.md")
    if table.exists():
        print(f"\n{table.read_text()}\nTables:  {RESULTS}/tables")
        print(
            "\n".join(
                f"Figure:  {path}" for path in FIGURE_PATHS if path.endswith(".png")
            )
        )


onerror:
    print(
        f"\nSome runs are missing (their logs: {RESULTS}/logs). Tables of what exists: add `partial` to the command."
    )
