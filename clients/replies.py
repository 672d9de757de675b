"""From values to messages: what clients answer. An update goes through its transforms here, on its way out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from clients import secagg
from clients.evaluation import by_domain, measured, sums_record
from clients.site import Site
from clients.state import rounds
from clients.state.base_offset import held_key
from clients.task import Answer, ClientFailed, Result, Task
from fedinit import transforms, wire
from fedinit.config.client import SGDSaIConfig
from fedinit.config.privacy import LEAST_CLIP, MOST_CLIP, ClientPrivacyConfig
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.errors import Refused, machine_failed
from fedinit.factors import Factors
from fedinit.runs.code import code_of_clients
from fedinit.secagg.fixed_point import FixedPoint
from fedinit.state.digest import of_tensors
from fedinit.statistics import create_statistics
from fedinit.transforms import HalfPrecision, Payload, UpdateTransform
from fedinit.transport.introduction import Introduction

HELD = "held"  # in Context.state: factors this client was sent once and keeps (frozen ones)


def encode(
    site: Site, task: Task, answers: Sequence[Answer], message: Message, context: Context, deployed: bool
) -> Message:
    """The reply to a message from the answers to its task, one or one a batch; an Error where one is a failure, as
    `refusal` makes it. Raises what a simulation's machine fails at, which is no client's fault."""
    write, stage = {
        "train": (update, "reply"),
        "measure": (statistics, "statistics"),
        "evaluate": (scores, "evaluate"),
    }[task.work]
    for answer in answers:
        if isinstance(answer, ClientFailed):
            return refusal(message, answer, deployed)
    try:
        return Message(write(site, task, answers, message, context), reply_to=message)
    except Exception as error:
        if machine_failed(error) and not deployed:
            raise
        return refusal(message, ClientFailed.of(task.client, stage, error), deployed)


def refusal(message: Message, failed: ClientFailed, deployed: bool) -> Message:
    """An Error that says in one line who failed, at what and why.

    deployed: the server is another's, so only a code leaves, and what the server knows; the rest is in the site's log.
    """
    if deployed:
        logging.getLogger(__name__).warning("%s", failed)
    return Message(Error(failed.code, failed.public if deployed else str(failed)), reply_to=message)


def description(site: Site, context: Context) -> RecordDict:
    """Who a client is: its partition and how many there are, examples, classes, domains, hash of its backbone; and what
    it holds from rounds before, by hash, for a server that was started again."""
    part, tensors = site.partition_of(context), held(context)
    return Introduction(
        client=part.client,
        partitions=len(site.partitions),
        examples=len(part.train),
        test_examples=len(part.test),
        classes=site.data.class_names,
        domains=site.data.domain_names,
        score=site.score.name,
        backbone=site.backbone.digest,
        held={name: of_tensors({name: tensor}) for name, tensor in tensors.items()},
        own_rounds=list(rounds.remembered(context, rounds.FACTORS)),
        base_key=held_key(context),
        code=code_of_clients(),
    ).record()


def held(context: Context) -> dict[str, Tensor]:
    """{wire name: tensor} of the factors that this client was sent once and keeps."""
    return wire.decode(wire.record(context.state, HELD, ArrayRecord)) if HELD in context.state else {}


def update(site: Site, task: Task, answers: Sequence[Answer], message: Message, context: Context) -> RecordDict:
    """What a client trained and sends, with the figures of its training. What it goes on from itself is remembered in
    its Context. Raises TypeError where the answer is no training's."""
    (result,) = answers
    if not isinstance(result, Result):
        raise TypeError(f"expected the result of a training, got {type(result).__name__}")
    config, remembered = wire.config(message), {}
    if config["own-factors"] or task.personal:
        remembered[rounds.FACTORS] = wire.encode(wire.to_tensors(result.adapter, {}))
    if config.get("second-phase", False):
        remembered[rounds.UPDATE] = wire.encode(wire.to_tensors(result.adapter, {}))
    optimizer = site.config.client
    if result.step_scales and isinstance(optimizer, SGDSaIConfig) and optimizer.gsnr_scope != "per_round":
        remembered[rounds.SCALES] = MetricRecord({**task.step_scales, **result.step_scales})
    rounds.remember(message, context, remembered)
    trained = {
        name: value
        for name, value in wire.to_tensors(result.adapter, result.head).items()
        if name.startswith(wire.HEAD) or name[-1] in task.trainable
    }
    if isinstance(secure := site.config.secure_aggregation, SecAggConfig):
        assert result.loss is not None  # with privacy=examples it is, which does not go with this
        return _masked(secure, site, task, message, context, trained, result.loss)
    metrics = {
        "num-examples": len(task.examples),
        "round": task.round,
        **({} if result.loss is None else {"loss": result.loss}),
        "steps": result.steps,
        "optimizer-state": result.optimizer_state,
        **task.notes,
    }
    chain = [*transforms.UPDATES, *transforms.clips_of(site.config.privacy, _clip(site, message))]
    return _sent(chain, task, Payload(trained, result.chosen), wire.numbers(metrics))


def _masked(
    secure: SecAggConfig,
    site: Site,
    task: Task,
    message: Message,
    context: Context,
    tensors: Mapping[str, Tensor],
    loss: float,
) -> RecordDict:
    point, examples, seed = FixedPoint(secure.clip, secure.bits), len(task.examples), site.config.seed
    return secagg.masked(message, context, task.client, point, examples, seed, tensors, loss)


def _clip(site: Site, message: Message) -> float | None:
    """The round's clip, where it adapts. Raises Refused for what is none."""
    privacy = site.config.privacy
    if not isinstance(privacy, ClientPrivacyConfig) or privacy.clip_quantile is None:
        return None
    clip = wire.value(wire.config(message), "clip", float)
    if not LEAST_CLIP <= clip <= MOST_CLIP:
        raise Refused(f"the server sent the clip {clip}")
    return clip


def projection(
    site: Site, task: Task, factors: Mapping[str, Factors], message: Message, context: Context
) -> RecordDict:
    """What the second phase of a round asks for: {"<layer>/S": B_i(A_iĀᵀ)}, (d, r) in float32; masked, in a run whose
    updates are.

    task: whose `adapter` are the means Ā and B̄ of the first phase. factors: {layer: A_i, B_i} of this client's update.
    """
    means, images = task.adapter, {}
    for name, mean in means.items():
        core = factors[name].A.double() @ mean.A.double().T  # (r_i, k) @ (k, r)
        images[wire.image_name(name)] = (factors[name].B.double() @ core).to(mean.B.dtype)
    if isinstance(secure := site.config.secure_aggregation, SecAggConfig):
        return _masked(secure, site, task, message, context, images, 0.0)
    return _sent(transforms.clips_of(site.config.privacy), task, Payload(images), MetricRecord({"round": task.round}))


def statistics(site: Site, task: Task, answers: Sequence[Answer], message: Message, context: Context) -> RecordDict:
    """The sums that round 0 asked for, in half precision (HalfPrecision), and over how many examples they run."""
    measurement = measured(*answers)
    if task.request is None:
        raise ValueError("a measurement without a request")
    chain = [HalfPrecision(create_statistics(task.request))]
    metrics = MetricRecord({"num-examples": measurement.examples, "round": task.round})
    return _sent(chain, task, Payload(measurement.tensors), metrics)


def scores(site: Site, task: Task, answers: Sequence[Answer], message: Message, context: Context) -> RecordDict:
    """The score's two sums over a client's own test split, by domain, for the server to add up."""
    record = sums_record(by_domain(site.data, task.examples, answers), site.score)
    record["round"] = task.round
    return RecordDict({wire.METRICS: record})


def _sent(chain: Sequence[UpdateTransform], task: Task, payload: Payload, metrics: MetricRecord) -> RecordDict:
    """The payload after the chain of transforms, and the metrics, as a message's content."""
    tensors = transforms.leave(chain, task, payload).tensors
    return wire.of_records({wire.STATE: wire.encode(tensors), wire.METRICS: metrics})
