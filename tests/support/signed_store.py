"""A control service that judges signatures, with archives to sign and register."""

import shutil
from collections.abc import Callable
from pathlib import Path

from support.control_fakes import FakeEngine, FakeGateway
from support.signers import KeyPair
from vlserve.control.assembly import assemble
from vlserve.control.outcomes import Registration
from vlserve.settings import Settings
from vlserve.settings_sections import TrustSettings
from vlserve.signing.archives import sign_archive
from vlserve.signing.beside import SignatureFiles, read_beside

Archive = Callable[..., Path]


class SignedStore:
    """A control service over fakes, with archives to register."""

    def __init__(
        self, settings: Settings, engine: FakeEngine, gateway: FakeGateway, pack: Archive
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.gateway = gateway
        self._pack = pack
        self.control = assemble(settings, engine, gateway)

    def restart(self, mode: str = "enforce") -> None:
        """Start control service and engine anew."""
        self.control.stop()
        trust = TrustSettings(mode=mode, keys=self.settings.trust.keys)  # type: ignore[arg-type]
        settings = self.settings.model_copy(update={"trust": trust})
        for name in self.engine.held:
            self.engine.restart_bare(name)
        self.control = assemble(settings, self.engine, self.gateway)

    def tick(self) -> None:
        for _ in range(3):
            self.control.reconciler.tick()
            while self.control.reconciler._submitted:
                pass

    def files(self, version: int, signer: KeyPair) -> SignatureFiles:
        """Return what `vlserve sign` writes beside a copy of an archive."""
        copy = self.control.service.incoming / f"signed-{version}.mar"
        shutil.copy(self._pack("tagger", version), copy)
        sign_archive(copy, signer.key)
        files = read_beside(copy)
        assert files is not None
        return files

    def register(self, version: int, files: SignatureFiles | None) -> Registration:
        file = self.control.service.incoming / f"tagger-{version}.mar"
        shutil.copy(self._pack("tagger", version), file)
        return self.control.service.register(file, file.name, files=files)

    def archive(self, version: int) -> Path:
        return self.control.ledger.version("tagger", version).archive

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.control.service.health().warnings


def revoke(pair: KeyPair) -> None:
    pair.public.write_text("", encoding="utf-8")
