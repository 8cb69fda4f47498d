"""The one exception tree. Errors say what happened; the edge maps them to HTTP and exit codes.
The attribute ``code`` of a class is what the HTTP API calls it; `error_class` finds a class by it.

VlserveError                  (vlserve.runtime.errors)
├── ArchiveError              (vlserve.runtime.errors, with its children)
├── RequestError              (vlserve.runtime.errors)
├── SettingsError             settings or serving_config/ that cannot work
├── ExtraMissing              an optional part of the installation is not there
├── ExportError
│   ├── RecipeNotFound        no such recipe, or a file that is not one
│   ├── CheckpointMismatch    a checkpoint that is not of the recipe's family, or cannot be read
│   └── ParityFailed          the graph does not answer like the trained network
├── KeyUnusable               a file that holds no key that signs, or verifies, archives
├── NotAdopted                an archive of torch-model-archiver that cannot be served here
├── DataError                 training or evaluation data that cannot be used
├── TrainingError             a training run that cannot be resumed or go on
├── ControlError
│   ├── Unauthorized          no key of the control service, or a wrong one
│   ├── RoleMissing           the caller's named key has not the role that the call needs
│   ├── TooManyActs           a named key acts more often than one may
│   ├── NamedKeysError        the file of the named keys cannot be used or changed
│   ├── UploadCutOff          an archive's upload that ended before its last byte
│   ├── ModelNotFound
│   ├── VersionNotFound
│   ├── VersionConflict       another archive under a used version number
│   ├── NotReady              the version is not loaded and healthy
│   │   └── EngineBusy        the engine has no room for one more question now
│   ├── ArchiveNotFound       no archive at the address that a registration names
│   │   └── ArchiveTooSlow    its server takes too long to give it
│   ├── UrlNotAllowed         control.allowed_urls does not let the address in
│   ├── TuningInvalid         a tuning of a version that this stack cannot use
│   ├── EngineNotRun          the stack runs no engine of the kind that is asked for
│   ├── OnAnotherEngine       the version is loaded on another engine than the one asked for
│   ├── StillServing          the version has weight, so it is not unloaded
│   ├── NotUnloaded           the version is neither retired nor failed, so it is not deleted
│   ├── NothingToRollBackTo
│   ├── ReleaseUnderWay       the model is being released in steps
│   ├── NoRelease             the model is not
│   ├── PairNotFound          the log of shadow pairs does not hold the pair any more
│   ├── VerdictUnanswerable   what a verdict was asked of makes no comparison
│   ├── VerdictDiffers        the verdict is none that the caller lets pass
│   ├── ObservationInvalid    a line of another gateway that is none
│   ├── ObservationTooLong
│   ├── ObservationsTooMany
│   ├── ObservationsUnwritable their log cannot be written
│   ├── LoadFailed            the engine could not load the version, or it answers its probes wrong
│   │   ├── ArchiveLost       its archive is gone from the store, or damaged there
│   │   ├── SignatureRefused  it is not trusted
│   │   │   ├── SignatureMissing
│   │   │   ├── SignatureUnknownKey   none of trust.keys signed it
│   │   │   ├── SignatureMismatch     the signature is another archive's, or not its key's
│   │   │   └── SignatureUnreadable   it has a form that is not verified
│   │   └── CallerGone        the caller went away, so it was stopped
│   ├── ControlBusy           too many loads wait already
│   ├── EngineUnavailable
│   ├── GatewayRefused        the gateway did not take a configuration
│   │   ├── GatewayUnwritable its files cannot be written
│   │   └── GatewaySilent     it does not say in time whether it took it
│   ├── NotControl            another program answers at the control service's address
│   ├── GatewayTaken          another process may change its routes now
│   ├── StoreUnwritable       the model store takes no archive: its disk is full, or read-only
│   ├── CaptureUnwritable     what is kept of requests cannot be written, or not deleted
│   ├── LedgerUnwritable      the ledger is read-only, or another process holds it locked
│   │   └── LedgerFull        its disk is full
│   ├── LedgerDamaged         the ledger's file is no ledger any more
│   ├── LedgerLost            it is gone or empty, and archives lie in the store
│   ├── EvidenceInvalid       (vlserve.control.judge.evidence) impossible evidence of a rollout
│   └── StateUnreadable       (vlserve.control.rollouts.state) a rollout's kept state cannot be read
├── BatchError                an offline job that cannot begin or go on
├── StressError               a load run that cannot be carried out, or was broken off
└── StackError                a process of the stack does not start, stop or answer
    ├── PortBusy
    ├── StackUnwell           the stack is up, and something of it needs help
    ├── NotThisMachine        the command works on the machine of the stack, and that is another
    ├── StackDown             nothing answers where the stack should
    └── SupervisorHangs       supervisord is there and takes no question
"""

from collections.abc import Iterator

from vlserve.errors.control import (
    ArchiveLost,
    ArchiveNotFound,
    ArchiveTooSlow,
    CallerGone,
    CaptureUnwritable,
    ControlBusy,
    ControlError,
    EngineBusy,
    EngineNotRun,
    EngineUnavailable,
    GatewayRefused,
    GatewaySilent,
    GatewayTaken,
    GatewayUnwritable,
    LedgerDamaged,
    LedgerFull,
    LedgerLost,
    LedgerUnwritable,
    LoadFailed,
    ModelNotFound,
    NamedKeysError,
    NoRelease,
    NotControl,
    NothingToRollBackTo,
    NotReady,
    NotUnloaded,
    ObservationInvalid,
    ObservationsTooMany,
    ObservationsUnwritable,
    ObservationTooLong,
    OnAnotherEngine,
    PairNotFound,
    ReleaseUnderWay,
    RoleMissing,
    SignatureMismatch,
    SignatureMissing,
    SignatureRefused,
    SignatureUnknownKey,
    SignatureUnreadable,
    StillServing,
    StoreUnwritable,
    TooManyActs,
    TuningInvalid,
    Unauthorized,
    UploadCutOff,
    UrlNotAllowed,
    VerdictDiffers,
    VerdictUnanswerable,
    VersionConflict,
    VersionNotFound,
)
from vlserve.runtime.errors import ArchiveError, RequestError, VlserveError

__all__ = [
    "ArchiveError",
    "ArchiveLost",
    "ArchiveNotFound",
    "ArchiveTooSlow",
    "BatchError",
    "CallerGone",
    "CaptureUnwritable",
    "CheckpointMismatch",
    "ControlBusy",
    "ControlError",
    "DataError",
    "EngineBusy",
    "EngineNotRun",
    "EngineUnavailable",
    "ExportError",
    "ExtraMissing",
    "GatewayRefused",
    "GatewaySilent",
    "GatewayTaken",
    "GatewayUnwritable",
    "KeyUnusable",
    "LedgerDamaged",
    "LedgerFull",
    "LedgerLost",
    "LedgerUnwritable",
    "LoadFailed",
    "ModelNotFound",
    "NamedKeysError",
    "NoRelease",
    "NotAdopted",
    "NotControl",
    "NotReady",
    "NotThisMachine",
    "NotUnloaded",
    "NothingToRollBackTo",
    "ObservationInvalid",
    "ObservationTooLong",
    "ObservationsTooMany",
    "ObservationsUnwritable",
    "OnAnotherEngine",
    "PairNotFound",
    "ParityFailed",
    "PortBusy",
    "RecipeNotFound",
    "ReleaseUnderWay",
    "RequestError",
    "RoleMissing",
    "SettingsError",
    "SignatureMismatch",
    "SignatureMissing",
    "SignatureRefused",
    "SignatureUnknownKey",
    "SignatureUnreadable",
    "StackDown",
    "StackError",
    "StackUnwell",
    "StillServing",
    "StoreUnwritable",
    "StressError",
    "SupervisorHangs",
    "TooManyActs",
    "TrainingError",
    "TuningInvalid",
    "Unauthorized",
    "UploadCutOff",
    "UrlNotAllowed",
    "VerdictDiffers",
    "VerdictUnanswerable",
    "VersionConflict",
    "VersionNotFound",
    "VlserveError",
    "error_class",
    "error_classes",
]


class SettingsError(VlserveError):
    """Settings or serving_config/ that cannot work."""

    code = "settings_error"


class ExtraMissing(VlserveError):
    """An optional part of the installation (an extra of the package) is not there."""

    code = "extra_missing"


class ExportError(VlserveError):
    """A trained model could not be turned into an archive."""

    code = "export_error"


class KeyUnusable(VlserveError):
    """A file holds no key that archives can be signed, or signatures verified, with."""

    code = "key_unusable"


class NotAdopted(VlserveError):
    """An archive of torch-model-archiver cannot be served here; the message says why."""

    code = "not_adopted"


class RecipeNotFound(ExportError):
    """No such recipe, or a file that is not one."""

    code = "recipe_not_found"


class CheckpointMismatch(ExportError):
    """A checkpoint that is not of the recipe's family, or cannot be read safely."""

    code = "checkpoint_mismatch"


class ParityFailed(ExportError):
    """The exported graph does not answer like the trained network."""

    code = "parity_failed"


class DataError(VlserveError):
    """Training or evaluation data that cannot be used."""

    code = "data_error"


class TrainingError(VlserveError):
    """A training run that cannot be resumed or go on."""

    code = "training_error"


class BatchError(VlserveError):
    """An offline job that cannot begin or go on; what it has finished is kept."""

    code = "batch_error"


class StressError(VlserveError):
    """A load run that cannot be carried out, or was broken off."""

    code = "stress_error"


class StackError(VlserveError):
    """A process of the stack does not start, stop or answer."""

    code = "stack_error"


class PortBusy(StackError):
    """Another process listens on a port that the stack needs."""

    code = "port_busy"


class StackUnwell(StackError):
    """The stack is up, and something of it is not well that does not mend itself."""

    code = "stack_unwell"


class StackDown(StackError):
    """Nothing answers at the address of the stack's gateway or control service."""

    code = "stack_down"


class NotThisMachine(StackError):
    """The command works on the machine of the stack, and VLSERVE_CONTROL_URL names another one."""

    code = "not_this_machine"


class SupervisorHangs(StackError):
    """supervisord is there, and takes no question: it is suspended or hangs."""

    code = "supervisor_hangs"


def error_classes(root: type[VlserveError] = VlserveError) -> Iterator[type[VlserveError]]:
    """Yield ``root`` and every class below it, of the modules that are imported by now."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def error_class(code: str) -> type[VlserveError] | None:
    """Return the class with this ``code``; None for a code that no class has."""
    return next((kind for kind in error_classes() if kind.code == code), None)
