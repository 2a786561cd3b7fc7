"""What a run starts from: its data, the model, and the code. What an earlier attempt did with others is dropped."""

from elder.fingerprint import Fingerprint, model_parts
from elder.record import Lineage
from tasks.data import Data
from tasks.provenance.lineage import lineage
from tasks.run.folder import start_over_unless_same
from tasks.run.run import Run, write_stage_params


def start_from(run: Run, data: Data) -> Lineage:
    """Make a run's folder ready for its stages, and return where data and code came from."""
    origin = lineage(run.root)
    inputs = model_parts(run.pinned)
    inputs |= {"data": data.digests, "commit": origin.git_commit}
    start_over_unless_same(run, Fingerprint(inputs))
    write_stage_params(run)
    files = {"data": data.digests, "dvc_lock_sha256": data.lock_sha256}
    return origin.model_copy(update=files)
