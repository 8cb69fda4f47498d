"""The parts of a control service, put together."""

from dataclasses import dataclass

from vlserve.control.contract import Engine, Gateway
from vlserve.control.ledger import Ledger
from vlserve.control.lifecycle import Lifecycle, Operations
from vlserve.control.reconcile import Reconciler
from vlserve.control.service import ControlService
from vlserve.control.traffic import Traffic
from vlserve.settings import Settings


@dataclass(frozen=True)
class Control:
    """One control service: the user's words, and the tick beside them."""

    ledger: Ledger
    service: ControlService
    reconciler: Reconciler

    def start(self) -> None:
        self.reconciler.start()

    def stop(self) -> None:
        self.reconciler.stop()
        self.ledger.close()


def assemble(settings: Settings, engine: Engine, gateway: Gateway) -> Control:
    """ControlError when another control service has the model store's ledger open."""
    ledger = Ledger(settings.model_store)
    traffic = Traffic(ledger, engine, gateway)
    lifecycle = Lifecycle(ledger, engine, traffic)
    operations = Operations()
    service = ControlService(
        ledger, traffic, lifecycle, operations, settings.control.drain_timeout_s
    )
    tick_s = settings.control.tick_s
    reconciler = Reconciler(ledger, engine, gateway, traffic, lifecycle, operations, tick_s)
    return Control(ledger, service, reconciler)
