"""Errors of what changes what is served: the control service, its engines and its gateway."""

from vlserve.runtime.errors import VlserveError, printable

MAX_WHY_CHARS = 2000
"""Of the reason why a version was not loaded."""


class ControlError(VlserveError):
    """The control service refuses, or cannot do, what was asked."""

    code = "control_error"


class Unauthorized(ControlError):
    """The request carries no key of the control service, or a wrong one."""

    code = "unauthorized"


class RoleMissing(ControlError):
    """The caller's named key has not the role that the call needs."""

    code = "role_missing"


class TooManyActs(ControlError):
    """The caller's named key acts more often than one may."""

    code = "too_many_acts"


class NamedKeysError(ControlError):
    """The file of the named keys cannot be used, or cannot take the change that was asked for."""

    code = "named_keys_error"


class UploadCutOff(ControlError):
    """The upload of an archive ended before its last byte."""

    code = "upload_cut_off"


class ModelNotFound(ControlError):
    """No version of a model of this name was ever registered."""

    code = "model_not_found"


class VersionNotFound(ControlError):
    """The model has no such version."""

    code = "version_not_found"


class VersionConflict(ControlError):
    """Another archive was registered under this model and version before."""

    code = "version_conflict"


class NotReady(ControlError):
    """The version is not loaded and healthy."""

    code = "not_ready"


class EngineBusy(NotReady):
    """The engine has no room for one more question now."""

    code = "engine_busy"


class ArchiveNotFound(ControlError):
    """There is no archive at the address that a registration names, or its server gives none."""

    code = "archive_not_found"


class ArchiveTooSlow(ArchiveNotFound):
    """Another server takes too long to give an archive."""

    code = "archive_too_slow"


class UrlNotAllowed(ControlError):
    """A registration names an address that is neither a file of the model store nor below
    `control.allowed_urls`."""

    code = "url_not_allowed"


class TuningInvalid(ControlError):
    """What lies beside an archive as its tuning cannot be read, or is another archive's."""

    code = "tuning_invalid"


class EngineNotRun(ControlError):
    """The stack runs no engine of the kind that a version is to be registered for."""

    code = "engine_not_run"


class OnAnotherEngine(ControlError):
    """The version is loaded on another engine than the one that it is to be registered for."""

    code = "on_another_engine"


class StillServing(ControlError):
    """The version has weight at the gateway, so it is not unloaded."""

    code = "still_serving"


class NotUnloaded(ControlError):
    """The version is neither retired nor failed, so its archive is not deleted."""

    code = "not_unloaded"


class NothingToRollBackTo(ControlError):
    """There is no earlier stable version."""

    code = "nothing_to_roll_back_to"


class ReleaseUnderWay(ControlError):
    """The model is being released in steps, and what was asked must wait for its end."""

    code = "release_under_way"


class PairNotFound(ControlError):
    """The log of shadow pairs does not hold the pair any more."""

    code = "pair_not_found"


class NoRelease(ControlError):
    """No release of the model is under way."""

    code = "no_release"


class VerdictUnanswerable(ControlError):
    """What a verdict was asked of makes no comparison: its time, its versions or its weight."""

    code = "verdict_unanswerable"


class VerdictDiffers(ControlError):
    """The verdict is none of those that the caller lets pass."""

    code = "verdict_differs"


class ObservationInvalid(ControlError):
    """A line of observations does not have the form that docs/other-rollout-tools.md describes."""

    code = "observation_invalid"


class ObservationTooLong(ControlError):
    """A line of observations is longer than 4 KiB."""

    code = "observation_too_long"


class ObservationsTooMany(ControlError):
    """One body has more than 5,000 lines of observations."""

    code = "observations_too_many"


class ObservationsUnwritable(ControlError):
    """The log of observations cannot be written, as on a full disk."""

    code = "observations_unwritable"


class LoadFailed(ControlError):
    """The engine could not load the version, or the version answers its probes wrong."""

    code = "load_failed"

    def __init__(self, why: str) -> None:
        """Say ``why``: often in an archive's own words, of which a terminal and a table are spared
        what steers them and what is too long."""
        super().__init__(printable(why[:MAX_WHY_CHARS]))


class ArchiveLost(LoadFailed):
    """The version's archive is gone from the model store, or holds other bytes than registered."""

    code = "archive_lost"


class SignatureRefused(LoadFailed):
    """An archive is not registered or not loaded, because of its signature."""

    code = "signature_refused"


class SignatureMissing(SignatureRefused):
    """`trust.mode` asks for a signature, and the archive has none."""

    code = "signature_missing"


class SignatureUnknownKey(SignatureRefused):
    """The archive is signed, by none of the keys of `trust.keys`."""

    code = "signature_unknown_key"


class SignatureMismatch(SignatureRefused):
    """The signature, or the provenance, is on other bytes than the archive's, or was not made by
    the key that it names."""

    code = "signature_mismatch"


class SignatureUnreadable(SignatureRefused):
    """The signature, or the provenance, has a form that is not verified, or is too large."""

    code = "signature_unreadable"


class CallerGone(LoadFailed):
    """A load was stopped, because the caller who asked for it went away."""

    code = "caller_gone"


class ControlBusy(ControlError):
    """As many loads as may wait are under way already."""

    code = "control_busy"


class EngineUnavailable(ControlError):
    """The engine does not answer."""

    code = "engine_unavailable"


class GatewayRefused(ControlError):
    """The gateway did not take a configuration."""

    code = "gateway_refused"


class GatewayUnwritable(GatewayRefused):
    """The gateway's files cannot be written, as on a full disk."""

    code = "gateway_unwritable"


class GatewaySilent(GatewayRefused):
    """The gateway does not say in time whether it took a configuration: it hangs, or is being
    started anew. A change back is kept then, and put in force as soon as the gateway answers."""

    code = "gateway_silent"


class NotControl(ControlError):
    """Another program answers at the address of the control service."""

    code = "not_control"


class GatewayTaken(ControlError):
    """Another process is the one that may change the gateway's routes now."""

    code = "gateway_taken"


class StoreUnwritable(ControlError):
    """The model store takes no archive, because its disk is full or read-only."""

    code = "store_unwritable"


class CaptureUnwritable(ControlError):
    """What is kept of a model's requests, or the plan of that, cannot be written or deleted."""

    code = "capture_unwritable"


class LedgerUnwritable(ControlError):
    """The ledger takes no change: it is read-only, or another process holds it locked."""

    code = "ledger_unwritable"


class LedgerFull(LedgerUnwritable):
    """The ledger takes no change, because its disk is full."""

    code = "ledger_full"


class LedgerDamaged(ControlError):
    """The ledger's file cannot be read as a ledger."""

    code = "ledger_damaged"


class LedgerLost(ControlError):
    """The ledger is gone or knows no version, while archives lie in the model store."""

    code = "ledger_lost"
