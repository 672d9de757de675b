"""privacy=clients as a run has it: its mechanism, calibrated to the rounds, and how many of them it can afford."""

from __future__ import annotations

from collections.abc import Mapping

from fedinit.config.privacy import ClientPrivacyConfig, ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.privacy.accounting import Rounds
from fedinit.privacy.mechanism import AdaptiveClip, ClientMechanism, Phase
from fedinit.privacy.steps import Steps
from fedinit.runs.summary import SECRET, SEED
from fedinit.said import upwards
from strategies.aggregator import Aggregator
from strategies.server.audience import Audience
from strategies.server.components import aggregator_of
from strategies.server.delivery import is_remote
from strategies.server.exchange import Exchange
from strategies.server.method import Method, needed, sample_size

UNCOUNTED = (
    "counted are the factors and head that clients are sent; not the losses, counts of examples, evaluations and who "
    "took part, which are in the run's folder"
)


def mechanism_of(
    config: Config, aggregator: Aggregator, clients: int, exchange: Exchange | None = None
) -> ClientMechanism | None:
    """The mechanism of every round of a run with so many clients; None without privacy=clients.

    exchange: the way to them; where they are elsewhere, noise is of the operating system's entropy whatever the
    configuration says. None: nobody is asked anything, as where only costs are wanted.
    Without `privacy.noise` it is the least with which all rounds stay within `privacy.epsilon`. Raises InputError where
    dp-accounting is missing, or no noise is enough.
    """
    privacy = config.privacy
    if not isinstance(privacy, ClientPrivacyConfig):
        return None
    _check_delta(privacy, clients)
    fixed = privacy.sampling == "fixed"
    expected = sample_size(config.participation, clients) if fixed else config.participation * clients
    costs = Rounds(expected / clients, privacy.sampling, privacy.delta, privacy.accountant)
    noise = privacy.noise
    if noise is None:
        assert privacy.epsilon is not None  # one of the two is given
        noise = costs.noise(privacy.epsilon, config.rounds)
    clips: dict[Phase, float] = {"first": privacy.clip}
    if aggregator.two_phase:
        clips["second"] = privacy.of_second_phase
    adaptive = None
    if privacy.clip_quantile is not None:
        of_count = max(expected / 20, noise) if privacy.count_noise is None else privacy.count_noise
        adaptive = AdaptiveClip(quantile=privacy.clip_quantile, rate=privacy.clip_rate, noise=of_count)
        adaptive.noise_of_updates(noise)  # or why it has none
    remote = exchange is not None and is_remote(exchange.grid)
    drawn = {
        "seed": config.private_seed("" if exchange is None else exchange.backbone_digest),
        "secure": privacy.secure or remote,
    }
    return ClientMechanism(clips=clips, costs=costs, adaptive=adaptive, noise=noise, expected=expected, **drawn)


def check_privacy(config: Config, examples: Mapping[int, int]) -> None:
    """Raise InputError for privacy that a run with these clients, {partition id: number of examples}, cannot have;
    that of examples is each client's own, and must be had by as many as a round's quorum is."""
    privacy = config.privacy
    if isinstance(privacy, ClientPrivacyConfig):
        if (mechanism := mechanism_of(config, aggregator_of(config, config.strategy), len(examples))) is not None:
            _affordable(config.rounds, mechanism, privacy)
    if not isinstance(privacy, ExamplePrivacyConfig):
        return
    able, faults = [], []
    for count in sorted(examples.values()):
        try:
            able.append(Steps.of(count, config.client, config.rounds, privacy))
        except InputError as fault:
            faults.append(fault)
    if faults and len(able) < needed(config.quorum, sample_size(config.participation, len(examples))):
        raise faults[0]
    if able:
        able[0].noise  # of the fewest images; or why there is none  # noqa: B018


def _check_delta(privacy: ClientPrivacyConfig, clients: int) -> None:
    if privacy.delta * clients >= 1:
        raise InputError(
            f"privacy.delta={privacy.delta:g}: expected less than one over the {clients} clients: a δ of that much is "
            "met by telling all about one of them"
        )


def _affordable(rounds: int, mechanism: ClientMechanism, privacy: ClientPrivacyConfig) -> int:
    """How many of these rounds stay within ε. Raises InputError where not even one does."""
    affordable = mechanism.affordable(rounds, privacy.epsilon)
    if not affordable:
        raise InputError(
            f"privacy.epsilon={privacy.epsilon:g}: one round with privacy.noise={mechanism.noise:g} has "
            f"ε = {upwards(mechanism.epsilon(1))}; more noise, or privacy.noise=null, which is as much as it takes"
        )
    return affordable


def affordable_rounds(config: Config, method: Method, audience: Audience) -> int:
    """How many of the run's rounds stay within `privacy.epsilon`, with a word in the ledger where these are not all.
    Raises InputError where not even one does."""
    mechanism, privacy = method.privacy, config.privacy
    if mechanism is None or not isinstance(privacy, ClientPrivacyConfig):
        return config.rounds
    rounds = _affordable(config.rounds, mechanism, privacy)
    audience.event("privacy", spent_of(mechanism, rounds))
    if rounds < config.rounds:
        why = f"privacy.epsilon={privacy.epsilon:g} is spent by then"
        audience.event("stops_early", {"after_round": rounds, "of": config.rounds, "detail": why})
    return rounds


def spent_of(mechanism: ClientMechanism, rounds: int) -> dict[str, object]:
    """What so many rounds have spent, for the ledger and the summary, and what of a run is not counted."""
    adaptive = {}
    if (clip := mechanism.adaptive) is not None:
        adaptive = {"count_noise": clip.noise, "update_noise": clip.noise_of_updates(mechanism.noise)}
    return {
        "unit": "client",
        "epsilon": mechanism.epsilon(rounds),
        "delta": mechanism.costs.delta,
        "rounds": rounds,
        "noise": mechanism.noise,
        "noise_drawn_by": SECRET if mechanism.secure else SEED,
        **adaptive,
        "neighbours": mechanism.costs.neighbours,
        "sampling": f"{mechanism.costs.sampling}, {mechanism.costs.share:g}",
        "detail": UNCOUNTED,
    }
