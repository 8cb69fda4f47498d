"""The parts of a control service, put together."""

from dataclasses import dataclass

from vlserve.control.gateway.traffic import Traffic
from vlserve.control.lifecycle.lifecycle import Lifecycle, Operations
from vlserve.control.ports import Engine, Gateway
from vlserve.control.reconcile.reconciler import Backoff, Reconciler
from vlserve.control.rollouts.evaluation import Logs
from vlserve.control.rollouts.loop import RolloutLoop, StackHealth
from vlserve.control.rollouts.service import RolloutService
from vlserve.control.rollouts.steps import RolloutSteps
from vlserve.control.service import ControlService
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.settings import Settings


@dataclass(frozen=True)
class Control:
    """One control service: the user's words, and the ticks beside them."""

    ledger: Ledger
    service: ControlService
    reconciler: Reconciler
    rollout_loop: RolloutLoop

    def start(self) -> None:
        self.reconciler.start()
        self.rollout_loop.start()

    def stop(self) -> None:
        self.rollout_loop.stop()
        self.reconciler.stop()
        self.ledger.close()


def assemble(settings: Settings, engine: Engine, gateway: Gateway) -> Control:
    """ControlError when another control service has the model store's ledger open."""
    ledger = Ledger(settings.model_store)
    traffic = Traffic(ledger, engine, gateway)
    lifecycle = Lifecycle(ledger, engine, traffic, settings.control.drain_timeout_s)
    operations, backoff = Operations(), Backoff()
    tick_s = settings.control.tick_s
    reconciler = Reconciler(
        ledger, engine, gateway, traffic, lifecycle, operations, backoff, tick_s
    )
    logs = Logs(
        requests=settings.state_dir / "logs" / "access.jsonl",
        copies=settings.state_dir / "logs" / "shadow.jsonl",
        answers=settings.state_dir / "logs" / "answers.jsonl",
    )
    records = RolloutStore(ledger)
    steps = RolloutSteps(ledger, records, traffic)
    stack_health = StackHealth(traffic, gateway, backoff.unloadable)
    rollout_loop = RolloutLoop(
        ledger, records, steps, stack_health, lifecycle, operations, logs, tick_s
    )
    policy_file = settings.config_file("rollout.yaml")
    rollouts = RolloutService(
        ledger, records, steps, rollout_loop, stack_health, lifecycle, operations, logs, policy_file
    )
    service = ControlService(
        ledger, traffic, lifecycle, operations, rollouts, settings.control.drain_timeout_s
    )
    return Control(ledger, service, reconciler, rollout_loop)
