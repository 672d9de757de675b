"""Stock Flower: its simulation engine with Ray, one core a client, FedAvg over NumPy clients."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from benchmarks.peers.work import Model, Work, parts, train
from fedinit.threads import cores


@functools.cache
def client_parts(work: Work) -> list:
    """In each of Ray's workers once."""
    torch.set_num_threads(1)
    return parts(work)


@functools.cache
def client_model(work: Work) -> Model:
    return Model(work)


def run(work: Work, told: Callable[[float], None]) -> None:
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    class Client(NumPyClient):
        def __init__(self, index: int) -> None:
            self.index = index

        def fit(self, parameters, config):
            model = client_model(work)
            model.load(dict(zip(model.trained(), map(torch.from_numpy, parameters), strict=True)))
            part = client_parts(work)[self.index]
            train(model, part, work)
            return [value.detach().cpu().numpy() for value in model.trained().values()], len(part[0]), {}

    class Clocked(FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            if failures:
                raise RuntimeError(f"{len(failures)} clients failed, {failures[0]}")
            merged = super().aggregate_fit(server_round, results, failures)
            told(time.time())
            return merged

    def server(context):
        start = ndarrays_to_parameters([value.detach().cpu().numpy() for value in Model(work).trained().values()])
        strategy = Clocked(
            fraction_evaluate=0.0,
            min_fit_clients=work.clients,
            min_available_clients=work.clients,
            initial_parameters=start,
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=work.rounds))

    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client()),
        num_supernodes=work.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 1 / cores() if work.device == "cuda" else 0.0}},
    )
