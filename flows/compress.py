"""The main flow: calibration, the stages of a compression, evaluate, speed, gate, store, register, report."""

import time

from prefect import flow

from elder.compression.job import processes
from elder.compression.stages import STAGES
from elder.record import Record
from tasks.baseline import baselines
from tasks.data import prepare_data
from tasks.provenance.energy import Meter
from tasks.record import (
    Findings,
    judge,
    present_champion,
    publish,
    register_run,
    report,
    settle,
    with_outcome,
)
from tasks.rows import candidate_row, dense_fingerprint, dense_row
from tasks.run.folder import abandoned_runs, close_run
from tasks.run.run import Run
from tasks.run.slots import crash_abandoned, ensure_gpu_limit
from tasks.stage import compression_stage, measure_speed, save, try_tasks
from tasks.start import start_from


def compress_and_register(run: Run) -> Record:
    """Make one shallower model and bring it to the registry, as a flow of Prefect.

    Args:
        run: in the folder that `tasks.run.folder.run_in_folder` made; what is finished there is not done again.

    Returns:
        The run's record, with the version and the place of the published model.
    """

    # Prefect keeps a flow's arguments, and should keep no password: this one has none
    @flow(name="compress", flow_run_name=run.run_id)
    def compress() -> Record:
        return do_all(run)

    return compress()


def do_all(run: Run) -> Record:
    """Do the steps of the flow, one after the other."""
    started, settings = time.monotonic(), run.settings
    ensure_gpu_limit()
    crash_abandoned([run.run_id, *abandoned_runs(run.root)])
    with Meter(run.energy, settings.energy) as meter:
        data = prepare_data(run)
        origin = start_from(run, data)
        try_tasks(run)
        for names in processes(STAGES, settings):
            compression_stage(names, run.work, run.stage_params, run.blocks)
        made = save(run)
        key = dense_fingerprint(run, made.model, data.digests["pins/tokenizer.json"])
        dense, candidate = dense_row(run, key), candidate_row(run, made)
        others = baselines(run, key, data.digests[run.blocks.name])
        speed = measure_speed(run)
        champion = present_champion(settings, run.root)
        verdict = judge(settings.gate, dense, candidate, speed, champion)
        seconds = time.monotonic() - started
        findings = Findings(
            made=made,
            data=data.facts,
            origin=origin,
            rows=[dense, candidate, *others],
            speed=speed,
            champion=champion,
            verdict=verdict,
            energy=meter.stop(),
            seconds=seconds,
        )
    record = settle(run, findings)
    published = publish(run, record)
    mlflow_run, version = register_run(record, published, settings, run.root)
    record = with_outcome(record, published, version, run.report)
    report(record, run.report, mlflow_run, settings, run.root)
    close_run(run.folder, record)
    return record
