"""What parameters that an older version wrote mean today."""

from elder.record import Json

# {former place of a key: where it is now}; version 0.1 had all keys of a section in one list
MOVED = {
    "select.place": ("select.elder.place",),
    "select.solver": ("select.elder.solver",),
    "select.iterative": ("select.elder.iterative",),
    "select.lambda1": ("select.elder.lambda1",),
    "select.lr": ("select.elder.lr",),
    "select.epochs": ("select.elder.epochs",),
    "select.batch": ("select.elder.batch", "select.shortened-taylor.batch"),
    "select.shortlist": ("select.elder.shortlist",),
    "select.merge_layers": ("select.laco.merge_layers",),
    "select.merge_range": ("select.laco.merge_range",),
    "select.merge_interval": ("select.laco.merge_interval",),
    "select.merge_samples": ("select.laco.merge_samples",),
    "compensate.ridge": ("compensate.linear.ridge",),
    "recover.next_token": ("recover.distil.next_token",),
    "recover.hidden": ("recover.distil.hidden",),
    "recover.synthetic": ("recover.distil.synthetic",),
}

# {key that version 0.1 lacked: what it did}
BEFORE: dict[str, Json] = {
    "calibration.bos": False,
    "select.elder.racing": None,
    "select.elder.runners_up": 0,
    "select.elder.written": 0,
    "recover.distil.drawing": "multinomial",
    "recover.distil.states": "anew",
}
