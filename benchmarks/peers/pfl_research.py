"""pfl-research (Apple), simulated: one process, or one a core by torchrun.

`pfl` federates what `requires_grad`, takes its own SGD over local epochs, and averages the differences.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.peers.work import RATE, Model, Work, parts


def run(work: Work, told: Callable[[float], None]) -> None:
    from pfl.aggregate.simulate import SimulatedBackend  # pyright: ignore[reportMissingImports]
    from pfl.algorithm.base import NNAlgorithmParams  # pyright: ignore[reportMissingImports]
    from pfl.algorithm.federated_averaging import FederatedAveraging  # pyright: ignore[reportMissingImports]
    from pfl.callback.base import TrainingProcessCallback  # pyright: ignore[reportMissingImports]
    from pfl.data.dataset import Dataset  # pyright: ignore[reportMissingImports]
    from pfl.data.federated_dataset import FederatedDataset  # pyright: ignore[reportMissingImports]
    from pfl.data.sampling import get_user_sampler  # pyright: ignore[reportMissingImports]
    from pfl.hyperparam import NNTrainHyperParams  # pyright: ignore[reportMissingImports]
    from pfl.metrics import Metrics  # pyright: ignore[reportMissingImports]
    from pfl.model.pytorch import PyTorchModel  # pyright: ignore[reportMissingImports]

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            told(time.time())
            return False, Metrics()

    data = parts(work)
    model = Model(work)
    users = FederatedDataset(
        lambda user: Dataset(raw_data=data[user], user_id=str(user)),
        get_user_sampler("minimize_reuse", list(range(work.clients))),
    )
    wrapped = PyTorchModel(
        model=model,
        local_optimizer_create=lambda values, lr: torch.optim.SGD([v for v in values if v.requires_grad], lr=lr),
        central_optimizer=torch.optim.SGD([*model.trained().values()], lr=1.0),
    )
    training = NNTrainHyperParams(
        local_batch_size=work.batch, local_num_epochs=int(work.steps > 0), local_learning_rate=RATE
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=2 * work.rounds,
            train_cohort_size=work.clients,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users),
        model=wrapped,
        model_train_params=training,
        callbacks=[Clock()],
    )
