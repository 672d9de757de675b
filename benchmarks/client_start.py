"""What a message costs a deployed client before it trains: a fresh process, from its start to a site that is ready.

``python -m benchmarks.client_start [run_sim.py's words]``: CPU seconds by stage, the least of five processes.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks import machine
from fedinit.config.compose import compose_config
from fedinit.config.flower import to_run_config
from fedinit.errors import InputError

STAGES = {
    "interpreter, Flower, the ClientApp": "import clients.client_app",
    "configuration": "config = clients.client_app.from_run_config(json.loads(sys.argv[1]))",
    "torch": "import torch; torch.set_num_threads(1)",
    "timm, torchvision": "import fedinit.models",
    "the client's own code": "import clients.cohort, clients.site, clients.state.disk",
    "backbone, from its file": "backbone = fedinit.models.build_backbone(config.model); backbone.digest",
    "site: backbone, partition, data": "site = clients.site.Site(config)",
}
MARK = "\nspent.append(time.process_time())\n"
CODE = "import json, sys, time\nspent = []\n" + "".join(code + MARK for code in STAGES.values())


def main() -> None:
    words = machine.words("client_start", __doc__)
    words.add_argument("words", nargs="*", metavar="key=value", help="run_sim.py's words")
    try:
        config = compose_config(["evaluation=clients", *words.parse_args().words])
    except InputError as error:
        words.error(str(error))
    run_config = json.dumps(to_run_config(config))
    best: list[float] = []
    for _ in range(5):
        command = [sys.executable, "-c", CODE + "print(json.dumps(spent))", run_config]
        marks = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
        spent = [b - a for a, b in zip([0.0, *marks], marks, strict=False)]
        best = spent if not best or sum(spent) < sum(best) else best
    print(machine.name())
    for stage, seconds in zip(STAGES, best, strict=True):
        print(f"{seconds:6.2f} s  {stage}")
    print(f"{sum(best):6.2f} s  CPU in all")


if __name__ == "__main__":
    main()
