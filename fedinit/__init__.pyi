from fedinit.errors import InputError as InputError
from fedinit.errors import RunFailed as RunFailed
from fedinit.runs.result import Run as Run
from fedinit.runs.result import load as load
from run_sim import run as run
from strategies.one_layer import aggregate as aggregate

BEGAN: float
FACE: dict[str, str]
__version__: str
